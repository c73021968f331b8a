"""One Parquet shard: the columns of `rows` as typed columns, image files in Hugging Face's `Image` layout.

`datasets.load_dataset("parquet", data_files=...)` shows the pictures and maps. Row groups are small, pages are uncompressed
(JPEG and PNG do not compress further) and carry checksums, so that one row is reached without reading much else.
"""

import collections
import json
import mmap
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ofaseg.data import codec
from ofaseg.data.rows import COLUMNS, FILE_COLUMNS, LIST_COLUMNS, ShardError, place

ROWS_PER_GROUP = 64
BYTES_PER_GROUP = 1 << 18
"""A row group ends at whichever comes first; reading one row of a shuffled epoch costs reading its group."""
_CACHED_GROUPS = 8
_READ_ERRORS = (OSError, pa.ArrowException, ValueError)

_FILE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_BOX_TYPE = pa.list_(pa.float64())
_TYPES = {
    "image": _FILE_TYPE,
    "label_map": _FILE_TYPE,
    "segment_map": _FILE_TYPE,
    "id": pa.string(),
    "captions": pa.list_(pa.string()),
    "boxes": pa.list_(pa.struct([("box", _BOX_TYPE), ("text", pa.string()), ("class_id", pa.int64())])),
    "segments": pa.list_(
        pa.struct([("id", pa.int64()), ("class_id", pa.int64()), ("is_crowd", pa.bool_()), ("area", pa.int64()), ("box", _BOX_TYPE)])
    ),
    "instances": pa.list_(
        pa.struct(
            [
                ("id", pa.int64()),
                ("class_id", pa.int64()),
                ("is_crowd", pa.bool_()),
                ("area", pa.float64()),
                ("box", _BOX_TYPE),
                ("mask", pa.string()),
            ]
        )
    ),
}


def _feature(arrow_type: pa.DataType):
    """The entry of an Arrow type in Hugging Face's features description."""
    if arrow_type == _FILE_TYPE:
        return {"_type": "Image"}
    if pa.types.is_list(arrow_type):
        return [_feature(arrow_type.value_type)]
    if pa.types.is_struct(arrow_type):
        return {field.name: _feature(field.type) for field in arrow_type}
    return {"dtype": {"double": "float64"}.get(str(arrow_type), str(arrow_type)), "_type": "Value"}


def schema(columns) -> pa.Schema:
    """The Arrow schema of a shard with `columns`, with the features description in its metadata."""
    features = {name: _feature(_TYPES[name]) for name in columns}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, _TYPES[name]) for name in columns], metadata=metadata)


class ParquetShard:
    """Random access to the rows of one Parquet file. Picklable; the file is opened lazily in each process.

    The checksums of a page are compared when it is first read, by this object or one in a process forked from its own.

    Args:
        path: the Parquet file.
        columns: the columns to offer; None for all known columns of the file.

    Raises:
        ShardError: no Parquet file, no row, a missing column, a column of another type.
    """

    def __init__(self, path, columns=None):
        self.path = str(path)
        try:
            metadata = pq.read_metadata(self.path, memory_map=True)
            arrow_schema = metadata.schema.to_arrow_schema()
        except _READ_ERRORS as error:
            raise ShardError.at(path, f"not a complete Parquet file ({_first_line(error)}); copy or write it again") from error
        self.columns = self._choose_columns(arrow_schema, columns)
        rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        self.group_starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        if not len(self):
            raise ShardError.at(path, "the file has no row; write it again or leave it out")
        # shared with forked data workers, which end with each epoch
        flags = np.frombuffer(mmap.mmap(-1, len(rows) * len(self.columns)), np.uint8)
        self._intact = flags.reshape(len(rows), len(self.columns))
        self._open_files: dict[bool, pq.ParquetFile] = {}
        self._groups: collections.OrderedDict = collections.OrderedDict()
        self._pid = -1

    def _choose_columns(self, arrow_schema: pa.Schema, columns) -> tuple[str, ...]:
        present = [name for name in COLUMNS if name in arrow_schema.names]
        missing = [name for name in columns or ("image",) if name not in present]
        if missing:
            there = ", ".join(arrow_schema.names)
            raise ShardError.at(self.path, f"the file has the columns {there}; rename or add the missing one", column=missing[0])
        chosen = tuple(columns or present)
        for name in chosen:
            found = arrow_schema.field(name).type
            if not _is_readable(name, found):
                raise ShardError.at(self.path, f"type {found} instead of {_TYPES[name]}; write the file again", column=name)
        return chosen

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open_files": {}, "_groups": collections.OrderedDict(), "_pid": -1}

    def _forget_other_process(self) -> None:
        """A forked process starts with an empty cache and opens the file for itself."""
        if self._pid != os.getpid():
            self._open_files, self._groups, self._pid = {}, collections.OrderedDict(), os.getpid()

    def _file(self, verify: bool) -> pq.ParquetFile:
        if verify not in self._open_files:
            known = next((file.metadata for file in self._open_files.values()), None)
            self._open_files[verify] = pq.ParquetFile(
                self.path, metadata=known, memory_map=True, pre_buffer=False, page_checksum_verification=verify
            )
        return self._open_files[verify]

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        if self._pid == os.getpid():
            for file in self._open_files.values():
                file.close()
        self._open_files = {}
        self._groups = collections.OrderedDict()

    def _read_group(self, group: int, names: list[str], row: int) -> None:
        """Puts columns of a row group into the cache."""
        places = [self.columns.index(name) for name in names]
        file = self._file(verify=not self._intact[group, places].all())
        try:
            table = file.read_row_group(group, columns=names, use_threads=False)
        except _READ_ERRORS as error:
            if len(names) > 1:  # one by one, to name the damaged column
                for name in names:
                    self._read_group(group, [name], row)
                return
            problem = f"row group {group} is damaged ({_first_line(error)}); copy or write the file again"
            raise ShardError.at(self.path, problem, row, names[0]) from error
        self._intact[group, places] = 1
        for name in names:
            self._groups[group, name] = table.column(name)
        while len(self._groups) > _CACHED_GROUPS * len(self.columns):
            self._groups.popitem(last=False)

    def read(self, row: int, columns) -> dict:
        """The given columns of row `row`. Raises ShardError for damaged pages and unusable values."""
        group = int(np.searchsorted(self.group_starts, row, side="right")) - 1
        inside = row - int(self.group_starts[group])
        self._forget_other_process()
        for name in columns:
            if (group, name) in self._groups:
                self._groups.move_to_end((group, name))
        missing = [name for name in columns if (group, name) not in self._groups]
        if missing:
            self._read_group(group, missing, row)
        result = {}
        for name in columns:
            value = self._groups[group, name][inside].as_py()
            if name in FILE_COLUMNS:
                value = self._file_bytes(value, name, row)
            elif name in LIST_COLUMNS:
                value = value or []
            elif value is None:
                raise ShardError.at(self.path, "no value; write the row again", row, name)
            result[name] = value if name != "id" else str(value)
        return result

    def _file_bytes(self, value, name: str, row: int):
        data = value.get("bytes") if isinstance(value, dict) else value
        if data:
            return data
        if isinstance(value, dict) and value.get("path"):
            raise ShardError.at(self.path, f"only the path {value['path']!r} is stored; write the file with embedded bytes", row, name)
        if name == "image":
            raise ShardError.at(self.path, "no image bytes; write the row again", row, name)
        return None

    def image_size(self, row: int) -> tuple[int, int]:
        """(H, W) of the image, from its header."""
        data = self.read(row, ("image",))["image"]
        try:
            return codec.image_size(data, place(self.path, row, "image"))
        except codec.CodecError as error:
            raise ShardError(str(error), self.path, row, "image") from error


def _is_readable(name: str, found: pa.DataType) -> bool:
    if name in FILE_COLUMNS:
        if pa.types.is_struct(found):
            return any(field.name == "bytes" and _is_binary(field.type) for field in found)
        return _is_binary(found)
    if name == "id":
        return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_integer(found)
    return found == _TYPES[name]


def _is_binary(found: pa.DataType) -> bool:
    return pa.types.is_binary(found) or pa.types.is_large_binary(found)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class ParquetPart:
    """Writes one Parquet file at `path`, row by row; `close` flushes it to disk."""

    def __init__(self, path, columns):
        self.path = Path(path)
        self.columns = tuple(columns)
        self._schema = schema(self.columns)
        self._rows: list[dict] = []
        self._bytes = 0
        self._file = open(self.path, "wb")
        self._writer = pq.ParquetWriter(
            self._file, self._schema, compression="NONE", use_dictionary=False, write_statistics=False, write_page_checksum=True
        )

    def write(self, row: dict) -> None:
        """Appends a row that `rows.normalise_row` returned."""
        self._rows.append({name: self._value(name, row[name]) for name in self.columns})
        self._bytes += sum(len(row[name]) for name in self.columns if name in FILE_COLUMNS and row[name])
        if len(self._rows) >= ROWS_PER_GROUP or self._bytes >= BYTES_PER_GROUP:
            self._flush()

    @staticmethod
    def _value(name: str, value):
        return {"bytes": value, "path": None} if name in FILE_COLUMNS and value is not None else value

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abort(self) -> None:
        """Closes the file without caring for its content."""
        try:
            self._writer.close()
            self._file.close()
        except (OSError, pa.ArrowException):  # flushing what is buffered may fail again on a full disk
            pass

    def renamed(self, path) -> None:
        """Called when the file has its final name; a Parquet file carries its own index."""
