"""CSV lists of images and captions beside a folder of image files, as CC3M and CC12M are kept.

Columns: image (file name below the folder), caption; optionally image_id and caption_id (integers); the first three under other names
where `ImageTextColumns` gives them. One row per caption; messages count rows from 0 after the line of column names.
"""

import array
import codecs
import csv
import io
import logging
import os
from pathlib import Path

import numpy as np

from ofaseg.data.image_text_source import USUAL_COLUMNS, ImageTextColumns, ImageTextSource, RowGroups, usable_captions
from ofaseg.data.rows import ShardError, place

logger = logging.getLogger(__name__)

NEEDED = ("image", "caption")
_ABSENT = -1
_MISSING, _BLANK, _THERE = range(3)


class CsvImageText(ImageTextSource):
    """One entry per image: rows of one image_id, or of one image name where the list has no ids, are its captions.

    Only byte offsets and group numbers are kept in memory, about 24 bytes per row. Opening reads the list once and looks for every
    image file, which takes some seconds per million rows. Images that are not there are counted in `missing` and left out; rows of
    a negative image_id are left out.

    Args:
        path: the list; UTF-8, the first line names the columns.
        images: folder of the image files.
        columns: names that the list uses instead of image, caption and image_id; ids under a name of their own may be texts.

    Raises:
        ShardError: the list cannot be read, lacks a column, or none of its images is there.
    """

    def __init__(self, path, images, columns: ImageTextColumns = USUAL_COLUMNS):
        self.path, self.images = str(path), str(images)
        if len(columns.captions) > 1:
            raise ShardError.at(path, f"a list has one caption column; name one of {', '.join(columns.captions)} with --caption-columns")
        self._names = {"image": columns.image or "image", "caption": (*columns.captions, "caption")[0]}
        self._names |= {"image_id": columns.image_id or "image_id", "caption_id": "caption_id"}
        self._required = {*NEEDED, *(["image_id"] if columns.image_id else [])}
        self._texts_as_ids = bool(columns.image_id)
        self._file, self._pid = None, -1
        try:
            self._scan()
        except OSError as error:
            raise ShardError.at(path, f"cannot be read ({error.strerror or error}); check the path") from error
        except csv.Error as error:
            returns = "new-line character" in str(error)
            advice = "end its lines with a line feed" if returns else "look for a quotation mark without its partner"
            raise ShardError.at(path, f"not a CSV list ({error}); {advice}") from error

    def _scan(self) -> None:
        offsets, keys, states = array.array("Q"), array.array("q"), array.array("b")
        last, last_state = None, _THERE  # captions of one image mostly follow each other: it is looked for once
        folder, exists = os.path.join(self.images, ""), os.path.isfile
        with open(self.path, "rb") as file:
            lines = _Lines(file)
            rows = csv.reader(lines)
            header = next(rows, [])
            self._fields = self._columns(header)
            self._least_fields, self._most_fields = max(self._fields.values()) + 1, len(header)
            offsets.append(lines.position)
            for fields in rows:
                offsets.append(lines.position)
                name, key = self._key(fields, len(offsets))
                if name != last:
                    last, last_state = name, _THERE if not name or exists(os.path.join(folder, name)) else _MISSING
                keys.append(key)
                states.append(last_state if fields else _BLANK)
        self._offsets = np.frombuffer(offsets, dtype=np.uint64)
        if not any(state != _BLANK for state in states):
            raise ShardError.at(self.path, "the list names columns, and no image; write a row per caption")
        self._check_end(len(keys) - 1)
        self._group(np.frombuffer(keys, dtype=np.int64), np.frombuffer(states, dtype=np.int8))

    def _check_end(self, last: int) -> None:
        """An open quotation mark makes everything behind it one field, up to the end of the file."""
        if last < 0:
            return
        with open(self.path, "rb") as file:
            file.seek(int(self._offsets[last]))
            text = file.read().decode("utf-8", "surrogateescape")
        # a line more is a row of its own, unless a field is still open
        if len(list(csv.reader(io.StringIO(text.rstrip("\r\n") + "\nend\n", newline="")))) < 2:
            raise ShardError.at(self.path, "a quotation mark without its partner: all that follows is one caption; correct the row", last)

    def _columns(self, header: list[str]) -> dict[str, int]:
        there = [name.strip() for name in header]
        missing = [name for column, name in self._names.items() if column in self._required and name not in there]
        if missing:
            wanted = " and ".join(name for column, name in self._names.items() if column in self._required)
            problem = f"the first line names {', '.join(there) or 'nothing'}, not {wanted}; say which are which with"
            raise ShardError.at(self.path, f"{problem} --image-column, --caption-columns, --image-id-column", column=missing[0])
        return {column: there.index(name) for column, name in self._names.items() if name in there}

    def _key(self, fields: list[str], number: int) -> tuple[str, int]:
        """(image name, number that rows of one image share); a row that cannot be read is alone, and reading it says why."""
        if len(fields) < self._least_fields or any(fields[self._most_fields :]):
            return "", hash((number, "row"))
        name = _tidy(fields[self._fields["image"]])
        if "image_id" not in self._fields:
            return name, hash(name)  # 64 bits: two of 12 million names agree with a chance of 4 in a million
        try:
            image_id = _whole(fields[self._fields["image_id"]])
        except ValueError:
            text = fields[self._fields["image_id"]].strip()
            return name, hash(text if self._texts_as_ids and text else (number, "row"))
        return name, max(image_id, _ABSENT) if image_id < 2**62 else hash(image_id)

    def _group(self, keys: np.ndarray, states: np.ndarray) -> None:
        listed = keys != _ABSENT if "image_id" in self._fields else np.ones(len(keys), dtype=bool)
        self._groups = RowGroups(keys, listed & (states == _THERE))
        missing = listed & (states == _MISSING)
        self.missing = len(np.unique(keys[missing]))
        if not len(self._groups):
            raise ShardError.at(self.path, f"none of its images is below {self.images}; write the list as LIST.csv:IMAGE_FOLDER")
        if self.missing:
            first = int(np.flatnonzero(missing)[0])
            name = os.path.join(self.images, self._fields_of(first)[self._fields["image"]])
            total = self.missing + len(self._groups)
            logger.warning("%s: %d of %d images are not there and left out, the first is %s", self.path, self.missing, total, name)

    def __len__(self) -> int:
        return len(self._groups)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None, "_pid": -1}

    def _fields_of(self, row: int) -> list[str]:
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = open(self.path, "rb"), os.getpid()
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        text = os.pread(self._file.fileno(), end - start, start).decode("utf-8", "surrogateescape")
        fields = next(csv.reader(io.StringIO(text, newline="")), [])
        if len(fields) < self._least_fields:
            raise ShardError.at(self.path, f"the row has {len(fields)} fields, at least {self._least_fields} are needed; correct it", row)
        if any(fields[self._most_fields :]):
            problem = (
                f"the row has {len(fields)} fields, the first line names {self._most_fields}; put captions with commas in quotation marks"
            )
            raise ShardError.at(self.path, problem, row)
        return fields

    def __getitem__(self, i: int) -> dict:
        """Entry `i`; of several rows the image is that of the last. Raises ShardError for a row or file that cannot be read."""
        rows = self._groups[self.checked_index(i)].tolist()
        found = [self._fields_of(row) for row in rows]
        texts = [self._text(fields[self._fields["caption"]], row) for fields, row in zip(found, rows)]
        caption_ids = [self._number(fields, "caption_id", row) for fields, row in zip(found, rows)] if "caption_id" in self._fields else ()
        captions, caption_ids = usable_captions(texts, caption_ids, self.path, rows[0], self._names["caption"])
        name = _tidy(found[-1][self._fields["image"]])
        image_id = self._number(found[-1], "image_id", rows[-1]) if "image_id" in self._fields else name
        path = Path(self.images) / name
        try:
            image = path.read_bytes()
        except OSError as error:
            raise ShardError.at(path, f"cannot be read ({error.strerror or error}); copy the file, or remove its row", rows[-1]) from error
        return {"image": image, "captions": captions, "image_id": image_id, "caption_ids": caption_ids}

    def _text(self, text: str, row: int) -> str:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ShardError.at(self.path, "not UTF-8; write the list in UTF-8", row, self._names["caption"]) from error
        return text

    def _number(self, fields: list[str], column: str, row: int) -> int | str:
        """A whole number; of a named column of image ids a text will do."""
        try:
            return _whole(fields[self._fields[column]])
        except ValueError as error:
            if column == "image_id" and self._texts_as_ids and fields[self._fields[column]].strip():
                return fields[self._fields[column]].strip()
            problem = f"{fields[self._fields[column]]!r} is not a whole number; correct the row"
            raise ShardError.at(self.path, problem, row, self._names[column]) from error

    def location(self, i: int, column: str = "") -> str:
        return place(self.path, int(self._groups[self.checked_index(i)][-1]), column)


def _tidy(name: str) -> str:
    """A file name as it is compared: ./a.jpg is a.jpg."""
    return os.path.normpath(name.strip()) if name.strip() else ""


def _whole(text: str) -> int:
    """A whole number; 12.0 is one, as tables with gaps are written. Raises ValueError."""
    number, _, decimals = text.strip().partition(".")
    if decimals.strip("0"):
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)


class _Lines:
    """The lines of a file as text, and how many bytes of it were handed out."""

    def __init__(self, file):
        self._lines, self.position = iter(file), 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        start, self.position = self.position, self.position + len(line)
        return (line if start else line.removeprefix(codecs.BOM_UTF8)).decode("utf-8", "surrogateescape")
