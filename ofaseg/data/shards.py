"""Shards: the one data format of all methods. `ShardReader` and `ShardWriter` for TSV and Parquet files of the same rows.

A data folder holds `<split>-00000-of-00004.tsv` (or `.parquet`, or one `<split>.tsv`) and one `vocabulary.json`: the class
vocabulary plus "columns" and "format", and by split "num_rows", "content_hash" and "files" (name, rows and content_hash of
each). While files are being exchanged, "writing" lists the split. The columns are described in `rows`.
Official OFA and IFSeg TSV files (image, label map, id, line number; no vocabulary.json) are read as they are.
"""

import bisect
import os
from pathlib import Path
from typing import List, Optional, Union

from ofaseg.data import rows as row_types
from ofaseg.data.folder import FOLDER_KEYS, check_row_counts, check_written, expand_paths, find_split, list_splits, read_description
from ofaseg.data.foreign import check_own_kind
from ofaseg.data.parquet import ParquetShard
from ofaseg.data.rows import COLUMNS, ShardError
from ofaseg.data.shard_writer import ShardWriter
from ofaseg.data.tsv import TsvShard, count_fields
from ofaseg.vocabulary import ClassVocabulary

__all__ = ["COLUMNS", "ShardError", "ShardReader", "ShardWriter", "find_split", "list_splits", "load_vocabulary"]

_OFFICIAL_COLUMNS = ("image", "label_map", "id")


def load_vocabulary(root) -> Optional[ClassVocabulary]:
    """The class vocabulary beside the shards in folder `root`; None when it has no vocabulary.json or that names no class.

    Raises:
        VocabularyError: vocabulary.json is malformed.
    """
    data = read_description(root)
    if data is None or "names" not in data:
        return None
    classes = {key: value for key, value in data.items() if key not in FOLDER_KEYS}
    return ClassVocabulary.from_json(classes, str(Path(root) / "vocabulary.json"))


def _selected_positions(selected_cols: str, columns) -> dict[str, int]:
    """Column name -> field number, from "0,1,2" (fields of `columns`, by default image, label map, id)."""
    names = tuple(columns or _OFFICIAL_COLUMNS)
    try:
        numbers = [int(text) for text in selected_cols.split(",")]
    except ValueError as error:
        raise ShardError(f"--selected-cols {selected_cols!r} are not field numbers from 0; write them as '0,1,2'") from error
    fits = len(numbers) == len(names) if columns else len(numbers) <= len(names)
    if min(numbers) < 0 or len(set(numbers)) != len(numbers) or not fits:
        raise ShardError(f"--selected-cols {selected_cols!r} must be distinct field numbers from 0 of {', '.join(names)}; correct them")
    return dict(zip(names, numbers))


def _open_tsv(path: str, selected_cols: Optional[str], columns) -> TsvShard:
    """Decides which field of a TSV is which column: --selected-cols, else vocabulary.json, else the official order."""
    described = (read_description(Path(path).parent) or {}).get("columns")
    if selected_cols:
        positions = _selected_positions(selected_cols, columns)
        for name, number in positions.items():
            if described and (number >= len(described) or described[number] != name):
                found = described[number] if number < len(described) else "no column"
                problem = f"--selected-cols puts it in field {number}, where vocabulary.json has {found}; drop --selected-cols"
                raise ShardError.at(path, problem, column=name)
        return TsvShard(path, positions, len(described) if described else None)
    if not described:
        fields = count_fields(path)
        if fields < 2 and os.path.getsize(path):
            raise ShardError.at(path, "the first line has one column, expected image, label map, id separated by tabs; write it again", 0)
        described, num_fields = _OFFICIAL_COLUMNS[:fields], None
    else:
        num_fields = len(described)
    missing = [name for name in columns or () if name not in described]
    if missing:
        raise ShardError.at(path, f"the file has the columns {', '.join(described)}; leave this one out or write it", column=missing[0])
    known = {name: number for number, name in enumerate(described) if name in COLUMNS}
    return TsvShard(path, {name: known[name] for name in columns or known}, num_fields)


class ShardReader:
    """Rows of one or several TSV or Parquet files, joined in the order given. `reader[i]` is row i, always.

    Nothing is kept open at construction, files are opened lazily in each process, and the object can be pickled.

    Args:
        paths_or_globs: files, globs, or a comma-separated string of them.
        selected_cols: "0,1,2", the fields of a TSV that hold image, label map and id (or `columns`, when given).
            Parquet columns have names, so it does not apply to them.
        columns: read only these columns; by default all.

    Raises:
        ShardError: a file is missing, empty or damaged, or lacks a column.
    """

    def __init__(
        self, paths_or_globs: Union[str, List[str]], selected_cols: Optional[str] = None, columns: Optional[List[str]] = None
    ):
        unknown = [name for name in columns or () if name not in COLUMNS]
        if unknown:
            raise ShardError(f"unknown column {unknown[0]!r}; choose from {', '.join(COLUMNS)}")
        self.paths = expand_paths(paths_or_globs)
        for path in self.paths:
            check_own_kind(path)
        self._shards = [
            ParquetShard(path, columns) if path.endswith(".parquet") else _open_tsv(path, selected_cols, columns) for path in self.paths
        ]
        self.columns = tuple(name for name in COLUMNS if all(name in shard.columns for shard in self._shards))
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + len(shard))

    @classmethod
    def for_split(cls, root, split: str, selected_cols: Optional[str] = None, columns: Optional[List[str]] = None) -> "ShardReader":
        """The rows of one split in data folder `root`.

        Raises:
            ShardError: as `find_split` and the constructor, when vocabulary.json counts other rows, or when the split's writing
                was interrupted. Contents are compared by `verify.verify_shards` only.
        """
        description = read_description(root) or {}
        check_written(root, split, description)
        reader = cls(find_split(root, split), selected_cols, columns)
        check_row_counts(root, split, description, {shard.path: len(shard) for shard in reader._shards})
        return reader

    def __len__(self) -> int:
        return self._starts[-1]

    def locate(self, i: int) -> tuple[str, int]:
        """(file, row inside the file) of row `i`; negative numbers count from the end. Raises IndexError outside."""
        shard, row = self._locate(i)
        return shard.path, row

    def _locate(self, i: int):
        i = int(i)
        position = i + len(self) if i < 0 else i
        if not 0 <= position < len(self):
            raise IndexError(f"row {i} is outside 0..{len(self) - 1} of {self.paths[0]}" + (" ..." if len(self.paths) > 1 else ""))
        k = bisect.bisect_right(self._starts, position) - 1
        return self._shards[k], position - self._starts[k]

    def location(self, i: int, column: str = "") -> str:
        """"<file>, row <n>, column <c>" of row `i`, for messages about what its bytes hold."""
        return row_types.place(*self.locate(i), column)

    def __getitem__(self, i: int) -> dict:
        """Row `i` as a dict of the columns present; see `rows` for their types. Raises ShardError for a bad row."""
        return self.read(i, self.columns)

    def read(self, i: int, columns=("id", "image")) -> dict:
        """Only the given columns of row `i`. Raises ShardError for a bad row or a column that is not there."""
        shard, row = self._locate(i)
        for name in columns:
            if name not in shard.columns:
                raise ShardError.at(shard.path, f"the file has the columns {', '.join(shard.columns)}; leave it out", row, name)
        try:
            return shard.read(row, columns)
        except OSError as error:
            raise ShardError.at(shard.path, f"cannot be read ({error.strerror or error}); check the disk and the path", row) from error

    def image_size(self, i: int) -> tuple[int, int]:
        """(H, W) of the image of row `i`, from its header, without decoding the pixels."""
        shard, row = self._locate(i)
        return shard.image_size(row)

    def close(self) -> None:
        """Closes the files of this process; reading opens them again."""
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()
