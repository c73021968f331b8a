"""Large JSON files of annotations: where each record lies, so that a sample reads only its own.

COCO's instances and PASCAL in Detail come as one JSON object with lists of records, up to half a gigabyte. A source has to be
small and picklable (see `data_prep.source`), so it keeps the byte ranges of the records and reads them when a sample is asked for.
"""

import json
import re
from pathlib import Path
from typing import Callable, NamedTuple

from data_prep.source import SourceError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class Record(NamedTuple):
    """An element of a list: bytes `start` to `end` of the file, and what the caller keeps of it."""

    start: int
    end: int
    kept: object


def scan_lists(path, keep: dict[str, Callable[[object], object]]) -> dict[str, list[Record]]:
    """The records of the lists `keep` at the top of a JSON object, in file order.

    Args:
        keep: name of a list -> what to keep of each of its elements. Other entries of the object are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        SourceError: it is no JSON object, it is damaged, or one of the lists is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: annotations not found; copy the JSON file of the release there")
    data = path.read_bytes()
    # one character per byte, so that positions in the text are positions in the file
    scanner = _Scanner(data.decode("latin-1"), len(_BYTE_ORDER_MARK) if data.startswith(_BYTE_ORDER_MARK) else 0)
    del data
    try:
        found = _lists(scanner, keep)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a JSON object that can be read ({error}); copy the file again from the release") from error
    missing = [name for name in keep if name not in found]
    if missing:
        raise SourceError(f"{path}: no list {missing[0]!r}; is this another file of the release?")
    return found


class _Scanner:
    """A position in JSON text. Its methods raise ValueError where the text is not as expected."""

    def __init__(self, text: str, at: int):
        self.text, self.at = text, at
        self._skip_blanks()

    def _skip_blanks(self) -> None:
        self.at = _BLANKS.match(self.text, self.at).end()

    def next(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, marks: str) -> str:
        """Passes one of the characters `marks`, which has to stand here."""
        mark = self.next()
        if not mark or mark not in marks:
            raise ValueError(f"{' or '.join(marks)} expected at byte {self.at}, found {mark or 'the end of the file'}")
        self.at += 1
        self._skip_blanks()
        return mark

    def value(self) -> tuple[int, int, object]:
        """Passes a JSON value: its first byte, the byte after it, and what it says."""
        start = self.at
        value, end = _DECODER.raw_decode(self.text, start)
        if not self.text[start:end].isascii():
            value = json.loads(self.text[start:end].encode("latin-1"))
        self.at = end
        self._skip_blanks()
        return start, end, value


def _lists(scanner: _Scanner, keep: dict) -> dict[str, list[Record]]:
    found, mark = {}, scanner.take("{")
    while mark != "}" and scanner.next() != "}":
        name = scanner.value()[2]
        scanner.take(":")
        if name in keep and scanner.next() == "[":
            found[name] = _records(scanner, keep[name])
        else:
            scanner.value()
        mark = scanner.take(",}")
    return found


def _records(scanner: _Scanner, keep: Callable) -> list[Record]:
    records, mark = [], scanner.take("[")
    if scanner.next() == "]":
        mark = scanner.take("]")
    while mark != "]":
        start, end, value = scanner.value()
        records.append(Record(start, end, keep(value)))
        mark = scanner.take(",]")
    return records
