"""What one row of a shard is, whatever file format holds it.

============= ======================================== =====================================================================
column        type                                     meaning
============= ======================================== =====================================================================
image         bytes                                    JPEG or PNG file, kept as it was
label_map     bytes or None                            PNG of the same height and width, see `codec.decode_label_map`
id            str                                      unique name of the sample, no tab or line break
captions      list of str                              sentences about the whole image
boxes         list of {box, text, class_id}            box [x0, y0, x1, y1] in pixels; a phrase; class id 0..K-1 or None
segment_map   bytes or None                            RGB PNG of segment ids R + 256 G + 65536 B, 0 = none
segments      list of {id, class_id, is_crowd, area, box}  one per segment id; area in pixels; box as above
instances     list of {id, class_id, is_crowd, area, box, mask}  objects whose masks may overlap; mask as COCO's text of run lengths
============= ======================================== =====================================================================
"""

import hashlib
import json
import math
from typing import Optional

from ofaseg.data import codec
from ofaseg.utils.run_lengths import RunLengthError, runs_of_text

COLUMNS = ("image", "label_map", "id", "captions", "boxes", "segment_map", "segments", "instances")
"""All columns, in the order of a TSV file."""
FILE_COLUMNS = ("image", "label_map", "segment_map")
LIST_COLUMNS = ("captions", "boxes", "segments", "instances")


class ShardError(ValueError):
    """A shard that cannot be read or written; the message is "<file>, row <n>, column <c>: <problem>; <what to do>".

    Attributes:
        file: path of the file, or "".
        row: row number inside that file, from 0, or None.
        column: name of the column, or "".
    """

    def __init__(self, message: str, file: str = "", row: Optional[int] = None, column: str = ""):
        super().__init__(message)
        self.file = str(file)
        self.row = row
        self.column = column

    @classmethod
    def at(cls, file, problem: str, row: Optional[int] = None, column: str = "") -> "ShardError":
        """A ShardError whose message starts with the place; `problem` ends in what to do."""
        return cls(f"{place(file, row, column)}: {problem}", file, row, column)


def place(file, row: Optional[int] = None, column: str = "") -> str:
    """ "<file>, row <n>, column <c>", as far as known."""
    return str(file) + (f", row {row}" if row is not None else "") + (f", column {column}" if column else "")


def check_columns(columns) -> tuple[str, ...]:
    """`columns` in the order of `COLUMNS`. Raises ShardError for an unknown or repeated name or a missing image or id."""
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or len(set(columns)) != len(columns):
        raise ShardError(f"unknown or repeated column in {list(columns)}; choose from {', '.join(COLUMNS)}")
    missing = [name for name in ("image", "id") if name not in columns]
    if missing:
        raise ShardError(f"columns {list(columns)} lack {' and '.join(missing)}; every row needs an image and an id")
    return tuple(name for name in COLUMNS if name in columns)


def normalise_row(row: dict, columns, file, number: Optional[int] = None) -> dict:
    """The row with exactly `columns`, every value of the type in this module's table (so both formats return it equal).

    Absent files become None, absent lists []. The sizes of image, label map, segment map and masks are compared.

    Raises:
        ShardError: a key outside `columns`, a missing image or id, a wrong type, sizes that differ.
    """
    extra = [name for name in row if name not in columns]
    if extra:
        raise ShardError.at(file, f"the row has {', '.join(map(str, extra))}, not among the columns {list(columns)}", number)
    result = {}
    for name in columns:
        try:
            result[name] = _NORMALISE[name](row.get(name))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            sample = f" (sample {row.get('id')!r})" if name != "id" else ""
            raise ShardError.at(file, f"{_reason(error)}{sample}; correct it in the converter", number, name) from error
    _check_sizes(result, file, number)
    return result


def _reason(error: Exception) -> str:
    return f"key {error} is missing" if isinstance(error, KeyError) else str(error)


def _check_sizes(row: dict, file, number: Optional[int]) -> None:
    expected = None
    for name in FILE_COLUMNS:
        if row.get(name) is None:
            continue
        try:
            size = codec.image_size(row[name])
        except codec.CodecError as error:
            raise ShardError.at(file, f"{error} (sample {row['id']!r})", number, name) from error
        expected = expected or size
        if size != expected:
            problem = f"height x width {size[0]}x{size[1]}, but the image has {expected[0]}x{expected[1]} (sample {row['id']!r})"
            swapped = " (height and width are swapped)" if size == expected[::-1] else ""
            raise ShardError.at(file, f"{problem}{swapped}; pair the files again or resize the map with nearest neighbour", number, name)
    for k, instance in enumerate(row.get("instances") or ()):
        _check_mask(instance["mask"], expected, f"mask {k} (sample {row['id']!r})", file, number)


def _check_mask(text: str, size: tuple[int, int], name: str, file, number: Optional[int]) -> None:
    """Raises ShardError when run lengths do not cover an image of `size`: a mask of another photo, or of its resized copy."""
    try:
        runs = runs_of_text(text)
    except RunLengthError as error:
        raise ShardError.at(file, f"{name}: {error}", number, "instances") from error
    if runs.min(initial=0) < 0 or runs.sum() != size[0] * size[1]:
        problem = f"{name} has {runs.sum()} pixels, but the image has {size[0]}x{size[1]}"
        raise ShardError.at(file, f"{problem}; draw it at the size of the image", number, "instances")


def _required_file(value) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview) or not len(value):
        raise ValueError(f"expected the bytes of an image file, got {_short(value)}")
    return bytes(value)


def _optional_file(value) -> Optional[bytes]:
    return None if value is None else _required_file(value)


def _id(value) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or any(character in value for character in "\t\n\r\0"):
        raise ValueError(f"an id must be a non-empty string without tab or line break, got {_short(value)}")
    return value


def _captions(value) -> list:
    value = [] if value is None else value
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"captions must be a list of strings, got {_short(value)}")
    return list(value)


def _box(value) -> list:
    box = [float(v) for v in value]
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        raise ValueError(f"a box must be four finite numbers x0, y0, x1, y1, got {_short(value)}")
    return box


def _class_id(value) -> Optional[int]:
    return None if value is None else int(value)


def _text(value) -> str:
    return "" if value is None else str(value)


def _boxes(value) -> list:
    return [{"box": _box(b["box"]), "text": _text(b.get("text")), "class_id": _class_id(b.get("class_id"))} for b in value or []]


def _segments(value) -> list:
    return [
        {
            "id": int(s["id"]),
            "class_id": _class_id(s.get("class_id")),
            "is_crowd": bool(s.get("is_crowd", False)),
            "area": int(s["area"]),
            "box": _box(s["box"]),
        }
        for s in value or []
    ]


def _instances(value) -> list:
    entries = []
    for entry in value or []:
        if not isinstance(entry["mask"], str):
            raise ValueError(f"a mask must be COCO's text of run lengths, got {_short(entry['mask'])}")
        area = float(entry["area"])
        if not math.isfinite(area):
            raise ValueError(f"an area must be a finite number, got {area}")
        entries += [entry_of | {"area": area, "mask": entry["mask"]} for entry_of in _segments([entry | {"area": 0}])]
    return entries


_NORMALISE = {
    "image": _required_file,
    "label_map": _optional_file,
    "id": _id,
    "captions": _captions,
    "boxes": _boxes,
    "segment_map": _optional_file,
    "segments": _segments,
    "instances": _instances,
}


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def list_to_text(value: list) -> bytes:
    """Compact one-line JSON (UTF-8); JSON escapes tabs and line breaks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


def text_to_list(text: bytes, column: str) -> list:
    """Inverse of `list_to_text`; empty text is []; a caption that is no JSON list is one plain sentence.

    Raises:
        ValueError: not JSON, or not a list of the column's entries.
    """
    if not text:
        return []
    decoded = text.decode("utf-8")
    if column == "captions" and not decoded.startswith("["):
        return [decoded]
    try:
        return _NORMALISE[column](json.loads(decoded))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a list of {column} ({_reason(error)})") from error


def row_digest(row: dict) -> bytes:
    """SHA-256 of a row that `normalise_row` returned or a reader read; the same in either file format.

    Files and splits are known by the hash of their rows' digests in order (`content_hash` in vocabulary.json), so that rows
    are hashed once, in any process.
    """
    digest = hashlib.sha256()
    for name, value in row.items():
        if name in LIST_COLUMNS:
            value = list_to_text(value)
        elif name == "id":
            value = value.encode("utf-8")
        length = -1 if value is None else len(value)
        digest.update(f"{name}:{length};".encode())
        digest.update(value or b"")
    return digest.digest()
