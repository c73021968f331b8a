"""Writing shards: many rows, several files, one vocabulary.json, all or nothing."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Optional

from ofaseg.atomic import atomic_write
from ofaseg.data.folder import list_splits, shard_name
from ofaseg.data.parquet import ParquetPart
from ofaseg.data.rows import ShardError, check_columns, hash_row, normalise_row
from ofaseg.data.tsv import TsvPart, index_path
from ofaseg.vocabulary import ClassVocabulary

PARTS = {"tsv": TsvPart, "parquet": ParquetPart}
_MANAGED_KEYS = ("columns", "format", "num_rows", "content_hash")


class ShardWriter:
    """Context manager writing the rows of one split to `<split>-00000-of-00004.<format>` files in folder `root`.

    Files have temporary names until the end of the block; then they replace the split's old files and vocabulary.json is
    updated. After an exception nothing of the new rows is left, and the old files are untouched.

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
        if format not in PARTS:
            raise ShardError(f"unknown shard format {format!r}; choose from {', '.join(PARTS)}")
        if not split or split.startswith(".") or any(c in split for c in "/\\\t\n"):
            raise ShardError(f"{split!r} cannot be the name of a split; use letters, digits and '_'")
        if rows_per_shard < 1:
            raise ShardError(f"rows_per_shard is {rows_per_shard}; it must be at least 1")
        self.root = Path(root)
        self.split = split
        self.vocabulary = vocabulary
        self.columns = check_columns(columns)
        self.format = format
        self.rows_per_shard = rows_per_shard
        self.num_rows = 0
        self._ids: set[str] = set()
        self._digest = hashlib.sha256()
        self._part = None
        self._parts: list = []
        with self._io_errors():
            self.root.mkdir(parents=True, exist_ok=True)
        self._merged_description()

    @contextlib.contextmanager
    def _io_errors(self):
        """Turns an error of the disk into a ShardError that says what to do."""
        try:
            yield
        except OSError as error:
            cures = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EACCES: "choose a writable folder"}
            cure = cures.get(error.errno, "check the disk and the path")
            raise ShardError.at(error.filename or self.root, f"cannot write ({error.strerror or error}); {cure}") from error

    def write(self, row: dict) -> None:
        """Appends a row.

        Raises:
            ShardError: a value of the wrong type, a repeated id, image and map of different size, or the disk fails.
        """
        row = normalise_row(row, self.columns, self.root / self.split, self.num_rows)
        if row["id"] in self._ids:
            problem = f"id {row['id']!r} was written before in this split; give every sample its own id"
            raise ShardError.at(self.root / self.split, problem, self.num_rows, "id")
        with self._io_errors():
            if self._part is None or self.num_rows % self.rows_per_shard == 0:
                self._next_part()
            self._part.write(row)
        self._ids.add(row["id"])
        hash_row(self._digest, row)
        self.num_rows += 1

    def _next_part(self) -> None:
        if self._part is not None:
            self._part.close()
        path = self.root / f".{self.split}-{len(self._parts):05d}.{os.getpid()}-{id(self):x}.tmp"
        self._part = PARTS[self.format](path, self.columns)
        self._parts.append(self._part)

    def close(self) -> None:
        """Gives the files their names, removes the split's old files and updates vocabulary.json.

        Raises:
            ShardError: no row was written, or the disk fails; nothing of the new rows is left then.
        """
        if not self.num_rows:
            self.abort()
            raise ShardError.at(self.root, f"no row was written for split {self.split!r}; check that the source has samples")
        try:
            with self._io_errors():
                self._part.close()
                with self._locked():
                    self._commit()
        except BaseException:
            self.abort()
            raise
        self._part, self._parts = None, []

    def _commit(self) -> None:
        description = self._merged_description()
        old = [Path(path) for path in list_splits(self.root).get(self.split, [])]
        names = [shard_name(self.split, k, len(self._parts), self.format) for k in range(len(self._parts))]
        for part, name in zip(self._parts, names):
            os.replace(part.path, self.root / name)
            part.renamed(self.root / name)
        for path in old:
            if path.name not in names:
                path.unlink()
                index_path(path).unlink(missing_ok=True)
        with atomic_write(self.root / "vocabulary.json", "w") as file:
            json.dump(description, file, indent=1, ensure_ascii=False)

    def _merged_description(self) -> dict:
        """vocabulary.json with this split's entries. Raises ShardError when the other splits there do not fit it."""
        path = self.root / "vocabulary.json"
        classes = self.vocabulary.to_json() if self.vocabulary is not None else {}
        new = {key: value for key, value in classes.items() if key not in _MANAGED_KEYS}
        new |= {"columns": list(self.columns), "format": self.format}
        num_rows, content_hash = {}, {}
        if path.exists():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
                num_rows, content_hash = dict(old.get("num_rows", {})), dict(old.get("content_hash", {}))
            except (ValueError, AttributeError, TypeError) as error:
                raise ShardError.at(path, f"not the description of a data folder ({error}); remove it or choose another folder") from error
            others = [name for name in num_rows if name != self.split]
            for key in ("names", "label_offset", "ignore_index", "columns", "format"):
                if others and old.get(key) != new.get(key):
                    problem = f"{key} of the splits there ({', '.join(others)}) is {old.get(key)!r:.80}, now {new.get(key)!r:.80}"
                    raise ShardError.at(path, f"{problem}; choose another folder, or remove this one first")
        num_rows[self.split] = self.num_rows
        content_hash[self.split] = "sha256:" + self._digest.hexdigest()
        return new | {"num_rows": num_rows, "content_hash": content_hash}

    @contextlib.contextmanager
    def _locked(self):
        """One writer at a time commits in this folder."""
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def abort(self) -> None:
        """Removes everything written so far; the split's old files stay."""
        if self._part is not None:
            self._part.abort()
        for part in self._parts:
            part.path.unlink(missing_ok=True)
        self._part, self._parts = None, []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, exception_type, *_) -> None:
        if exception_type is None:
            self.close()
        else:
            self.abort()

