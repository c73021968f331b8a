"""Writing shards: many rows, several files, one vocabulary.json."""

import contextlib
import os
from pathlib import Path
from typing import Optional

from ofaseg.data.exchange import PARTS, SplitExchange, disk_errors
from ofaseg.data.rows import ShardError, normalise_row, row_digest
from ofaseg.vocabulary import ClassVocabulary


class ShardFile:
    """One shard file being written at `path`.

    Attributes:
        ids: the ids of its rows, in order.
        digests: the `row_digest` of each row.
    """

    def __init__(self, path, columns, format: str):
        self.path = Path(path)
        self.ids: list[str] = []
        self.digests: list[bytes] = []
        try:
            self._part = PARTS[format](self.path, columns)
        except BaseException:
            with contextlib.suppress(OSError):
                self.path.unlink()
            raise

    def append(self, row: dict) -> None:
        """Appends a row that `rows.normalise_row` returned. Raises OSError when the disk fails."""
        self._part.write(row)
        self.ids.append(row["id"])
        self.digests.append(row_digest(row))

    def close(self) -> None:
        """Completes the file and flushes it to disk. Raises OSError when the disk fails."""
        self._part.close()

    def renamed(self, path) -> None:
        """Called when the file was renamed to `path`: stores what belongs beside it."""
        self._part.renamed(path)

    def abort(self) -> None:
        """Removes the file."""
        self._part.abort()
        self.path.unlink(missing_ok=True)


class ShardWriter:
    """Context manager writing the rows of one split to `<split>-00000-of-00004.<format>` files in folder `root`.

    Files have temporary names until the end of the block; then they replace the split's old files and vocabulary.json is
    updated. After an exception inside the block nothing of the new rows is left, and the old files are untouched. Should the
    exchange itself fail half-way, readers refuse the split until it is written again; other splits stay usable.

    Args:
        root: the data folder, created when missing.
        split: name of the split, such as "train".
        vocabulary: the classes of the label maps; None for shards without labels.
        columns: columns to write, any order; `rows.COLUMNS` says which exist. Image and id are required.
        format: "tsv" or "parquet".
        rows_per_shard: a new file begins after this many rows.

    Raises:
        ShardError: an unusable argument, or a vocabulary.json there that describes other classes, columns or format.
    """

    def __init__(self, root, split: str, vocabulary: Optional[ClassVocabulary], columns, format: str = "tsv", rows_per_shard: int = 5000):
        if rows_per_shard < 1:
            raise ShardError(f"rows_per_shard is {rows_per_shard}; it must be at least 1")
        self._exchange = SplitExchange(root, split, vocabulary, columns, format)
        self.root = self._exchange.root
        self.split = split
        self.columns = self._exchange.columns
        self.format = format
        self.rows_per_shard = rows_per_shard
        self.num_rows = 0
        self._ids: set[str] = set()
        self._files: list[ShardFile] = []

    def write(self, row: dict) -> None:
        """Appends a row.

        Raises:
            ShardError: a value of the wrong type, a repeated id, image and map of different size, or the disk fails.
        """
        row = normalise_row(row, self.columns, self.root / self.split, self.num_rows)
        if row["id"] in self._ids:
            problem = f"id {row['id']!r} was written before in this split; give every sample its own id"
            raise ShardError.at(self.root / self.split, problem, self.num_rows, "id")
        with disk_errors(self.root):
            if self.num_rows % self.rows_per_shard == 0:
                self._next_file()
            self._files[-1].append(row)
        self._ids.add(row["id"])
        self.num_rows += 1

    def _next_file(self) -> None:
        if self._files:
            self._files[-1].close()
        path = self.root / f".{self.split}-{len(self._files):05d}.{os.getpid()}-{id(self):x}.tmp"
        self._files.append(ShardFile(path, self.columns, self.format))

    def close(self) -> None:
        """Gives the files their names, removes the split's old files and updates vocabulary.json.

        Raises:
            ShardError: no row was written, or the disk fails.
        """
        if not self.num_rows:
            self.abort()
            raise ShardError.at(self.root, f"no row was written for split {self.split!r}; check that the source has samples")
        try:
            with disk_errors(self.root):
                self._files[-1].close()
            self._exchange.commit(self._files)
        except BaseException:
            self.abort()
            raise
        self._files = []

    def abort(self) -> None:
        """Removes everything written so far; the split's old files stay."""
        for file in self._files:
            file.abort()
        self._files = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, exception_type, *_) -> None:
        if exception_type is None:
            self.close()
        else:
            self.abort()

