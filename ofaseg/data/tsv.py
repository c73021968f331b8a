"""One TSV shard: a line per row, tab-separated fields, no header; files as base64, lists as compact JSON.

Random access goes through the byte offset of every line, kept beside the TSV as `<file>.idx`: a plain binary file that
names the size, modification time and sampled content hash of the TSV it belongs to. An index that does not match is built
again; where it cannot be stored (read-only folder) it stays in memory. Every line read is checked against its offsets.
"""

import array
import hashlib
import logging
import os
import struct
from pathlib import Path
from typing import Optional

import numpy as np
from tqdm import tqdm

from ofaseg.atomic import atomic_write
from ofaseg.data import codec
from ofaseg.data.rows import FILE_COLUMNS, LIST_COLUMNS, ShardError, list_to_text, place, text_to_list

logger = logging.getLogger(__name__)

_MAGIC = b"OFASEGIX"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQq32s32sQ")  # magic, version, reserved, size, mtime_ns, fingerprint, hash of offsets, rows
_BLOCK = 4096
_BLOCKS = 64
_SWEEP_BYTES = 1 << 24
_QUIET_SECONDS = 1.0
_HEADER_CHARACTERS = 1 << 15


class _BadIndex(Exception):
    """The index file is damaged or belongs to another TSV."""


class _StaleOffsets(Exception):
    """A line does not lie where the index says."""


def index_path(path) -> Path:
    """Where the offsets index of a TSV is kept."""
    return Path(f"{path}.idx")


def fingerprint(file, size: int) -> bytes:
    """SHA-256 over the size and the whole file, or over 64 blocks spread over a file of more than 256 KiB."""
    digest = hashlib.sha256(struct.pack("<Q", size))
    if size <= _BLOCK * _BLOCKS:
        starts, length = [0], size
    else:
        starts, length = [(size - _BLOCK) * k // (_BLOCKS - 1) for k in range(_BLOCKS)], _BLOCK
    for start in starts:
        digest.update(os.pread(file.fileno(), length, start))
    return digest.digest()


def build_offsets(path) -> np.ndarray:
    """(N + 1,) uint64: where each line starts, then the file size. One sweep over the file, with a progress bar when it takes long."""
    offsets, base = array.array("Q", [0]), 0
    buffer = bytearray(_SWEEP_BYTES)
    progress = {"desc": f"indexing {Path(path).name}", "unit": "B", "unit_scale": True, "delay": _QUIET_SECONDS, "leave": False}
    with open(path, "rb", buffering=0) as file, tqdm(total=os.path.getsize(path), **progress) as bar:
        while count := file.readinto(buffer):
            position = buffer.find(b"\n", 0, count)
            while position >= 0:
                offsets.append(base + position + 1)
                position = buffer.find(b"\n", position + 1, count)
            base += count
            bar.update(count)
    if offsets[-1] != base:  # the last line has no line break
        offsets.append(base)
    return np.asarray(offsets, dtype="<u8")


def save_index(path, offsets: np.ndarray) -> None:
    """Writes `<path>.idx` atomically. Raises OSError when the folder cannot be written."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        content = fingerprint(file, status.st_size)
    payload = offsets.astype("<u8").tobytes()
    digest = hashlib.sha256(payload).digest()
    with atomic_write(index_path(path)) as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, 0, status.st_size, status.st_mtime_ns, content, digest, len(offsets) - 1))
        file.write(payload)


def _read_index(path) -> np.ndarray:
    """The stored offsets. Raises FileNotFoundError, or _BadIndex with the reason not to use them."""
    data = index_path(path).read_bytes()
    if len(data) < _HEADER.size:
        raise _BadIndex("it is too short")
    magic, version, _, size, mtime, content, digest, rows = _HEADER.unpack_from(data)
    payload = memoryview(data)[_HEADER.size :]
    if magic != _MAGIC or version != _VERSION:
        raise _BadIndex("it is of another kind or version")
    if len(payload) != 8 * (rows + 1) or hashlib.sha256(payload).digest() != digest:
        raise _BadIndex("it is damaged")
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (size, mtime) or fingerprint(file, size) != content:
            raise _BadIndex("the TSV has changed since")
    return np.frombuffer(payload, dtype="<u8")


def index_problem(path) -> str:
    """Why the stored index of a TSV is not used; "" when it fits, or when there is none."""
    try:
        _read_index(path)
    except FileNotFoundError:
        return ""
    except (_BadIndex, OSError) as error:
        return str(error)
    return ""


def load_offsets(path) -> np.ndarray:
    """The line offsets of `path`, from its index when that matches, else from a sweep whose result is stored if possible.

    Raises:
        ShardError: the file is empty.
    """
    if os.path.getsize(path) == 0:
        raise ShardError.at(path, "the file is empty; write it again or leave it out")
    try:
        return _read_index(path)
    except FileNotFoundError:
        logger.info("indexing %s", path)
    except (_BadIndex, OSError) as error:
        logger.warning("%s is not used, since %s; building it again", index_path(path), error)
    return _rebuild_offsets(path)


def _rebuild_offsets(path) -> np.ndarray:
    offsets = build_offsets(path)
    try:
        save_index(path, offsets)
    except OSError as error:
        logger.warning("cannot store %s (%s); keeping the index of %d rows in memory", index_path(path), error.strerror, len(offsets) - 1)
    return offsets


def count_fields(path) -> int:
    """Number of tab-separated fields of the first line."""
    with open(path, "rb") as file:
        return file.readline().count(b"\t") + 1


class TsvShard:
    """Random access to the rows of one TSV file. Picklable; the file is opened lazily in each process.

    Args:
        path: the TSV file.
        positions: column name -> field number from 0.
        num_fields: fields every line must have; None accepts any number that covers `positions` (official files).
    """

    def __init__(self, path, positions: dict, num_fields: Optional[int]):
        self.path = str(path)
        self.positions = dict(positions)
        self.num_fields = num_fields
        self._offsets = load_offsets(path)
        self._file = None
        self._pid = -1

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.positions)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None, "_pid": -1}

    def _fileno(self) -> int:
        if self._file is None or self._pid != os.getpid():
            self._file = open(self.path, "rb")
            self._pid = os.getpid()
        return self._file.fileno()

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    def _line(self, row: int) -> tuple[bytes, int, int]:
        """(data, start, stop): line `row`, checked to be one whole line, is data[start:stop] without its line break."""
        try:
            return self._line_at(row)
        except _StaleOffsets:
            logger.warning("%s changed while it was open; indexing it again", self.path)
        self.close()
        self._offsets = _rebuild_offsets(self.path)
        try:
            if row < len(self):
                return self._line_at(row)
        except _StaleOffsets:
            pass
        raise ShardError.at(self.path, "the file changes while it is being read; wait until it is complete", row)

    def _line_at(self, row: int) -> tuple[bytes, int, int]:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        before = 1 if start else 0
        data = os.pread(self._fileno(), end - start + before, start - before)
        at_end = row == len(self) - 1
        complete = len(data) == end - start + before and (data.endswith(b"\n") or at_end)
        if not complete or (before and data[:1] != b"\n") or data.find(b"\n", before, -1) >= 0:
            raise _StaleOffsets
        stop = len(data)
        while stop > before and data[stop - 1] in b"\r\n":
            stop -= 1
        return data, before, stop

    def _fields(self, row: int) -> tuple[bytes, list[int]]:
        """(data, ends): field k of line `row` is data[ends[k] + 1 : ends[k + 1]]. Long lines are not copied for it."""
        data, start, stop = self._line(row)
        ends = [start - 1]
        while (tab := data.find(b"\t", ends[-1] + 1, stop)) >= 0:
            ends.append(tab)
        ends.append(stop)
        found, needed = len(ends) - 1, self.num_fields or max(self.positions.values()) + 1
        if found == needed or (self.num_fields is None and found > needed):
            return data, ends
        if start == stop:
            raise ShardError.at(self.path, f"line {row + 1} is empty; remove it", row)
        expected = f"{needed} ({', '.join(self.columns)})" if self.num_fields else f"at least {needed}"
        raise ShardError.at(self.path, f"line {row + 1} has {found} columns, expected {expected}; write the file again", row)

    def read(self, row: int, columns) -> dict:
        """The given columns of row `row`. Raises ShardError for a bad line or field."""
        data, ends = self._fields(row)
        places = {name: self.positions[name] for name in columns}
        return {name: self._parse(name, data[ends[k] + 1 : ends[k + 1]], row) for name, k in places.items()}

    def _parse(self, name: str, field: bytes, row: int):
        try:
            if name in FILE_COLUMNS:
                if not field and name != "image":
                    return None
                data = codec.b64decode(field)
                if not data:
                    raise ValueError("the field is empty; write the row again")
                return data
            return text_to_list(field, name) if name in LIST_COLUMNS else field.decode("utf-8")
        except codec.CodecError as error:
            raise ShardError.at(self.path, str(error), row, name) from error
        except ValueError as error:
            raise ShardError.at(self.path, f"{error}; write the row again", row, name) from error

    def image_size(self, row: int) -> tuple[int, int]:
        """(H, W) of the image, from the first part of the line where that holds the image header."""
        if self.positions.get("image") == 0:
            start, end = int(self._offsets[row]), int(self._offsets[row + 1])
            before = 1 if start else 0
            text = os.pread(self._fileno(), min(_HEADER_CHARACTERS, end - start) + before, start - before)
            try:
                if before and text[:1] != b"\n":
                    raise codec.CodecError("no line starts here")
                text = text[before:].split(b"\t")[0]
                return codec.image_size(codec.b64decode(text[: len(text) // 4 * 4]))
            except codec.CodecError:  # a longer header, a stale index or a bad row: reading the whole row tells
                pass
        data = self.read(row, ("image",))["image"]
        try:
            return codec.image_size(data, place(self.path, row, "image"))
        except codec.CodecError as error:
            raise ShardError(str(error), self.path, row, "image") from error


class TsvPart:
    """Writes one TSV file at `path`, row by row; `close` flushes it to disk."""

    def __init__(self, path, columns):
        self.path = Path(path)
        self.columns = tuple(columns)
        self._offsets = [0]
        self._file = open(self.path, "wb", buffering=1 << 20)

    def write(self, row: dict) -> None:
        """Appends a row that `rows.normalise_row` returned."""
        line = b"\t".join(self._field(name, row[name]) for name in self.columns) + b"\n"
        self._file.write(line)
        self._offsets.append(self._offsets[-1] + len(line))

    @staticmethod
    def _field(name: str, value) -> bytes:
        if name in FILE_COLUMNS:
            return b"" if value is None else codec.b64encode(value)
        return list_to_text(value) if name in LIST_COLUMNS else value.encode("utf-8")

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abort(self) -> None:
        """Closes the file without caring for its content."""
        try:
            self._file.close()
        except OSError:  # flushing what is buffered may fail again on a full disk
            pass

    def renamed(self, path) -> None:
        """Called when the file has its final name: stores its index beside it."""
        save_index(path, np.asarray(self._offsets, dtype="<u8"))
