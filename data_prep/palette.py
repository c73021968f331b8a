"""Colour-coded label maps: a palette file names the class of each RGB colour."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.vocabulary import IGNORE_INDEX


class NamedColour(NamedTuple):
    """A line of a palette file."""

    name: str
    rgb: tuple[int, int, int]


def read_palette(path) -> list[NamedColour]:
    """The lines "name r g b" of a palette file (0..255 each; a name may have spaces; "#" begins a comment).

    Raises:
        SourceError: the file is missing or empty, a line of another form, a colour or name that stands twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: the palette cannot be read ({error}); give a text file with lines 'name r g b'") from error
    entries: list[NamedColour] = []
    for number, line in enumerate(lines):
        line = line.split("#")[0].strip()
        if not line:
            continue
        name, *rgb = line.rsplit(None, 3)
        if len(rgb) != 3 or not all(value.isdigit() and int(value) <= 255 for value in rgb):
            raise SourceError(f"{path}, row {number}: {line!r} is not 'name r g b' with colours 0..255; correct the line")
        entry = NamedColour(name, tuple(int(value) for value in rgb))
        if any(entry.rgb == other.rgb or entry.name == other.name for other in entries):
            raise SourceError(f"{path}, row {number}: the name or the colour of {line!r} stood before; give every class its own")
        entries.append(entry)
    if not entries:
        raise SourceError(f"{path}: the palette has no line; write 'name r g b' for every class")
    return entries


def colours_to_ids(data: bytes, colours: list[NamedColour], class_names, where: str) -> np.ndarray:
    """(H, W) int32 class ids of a colour-coded label image; colours whose name is not in `class_names` are no label.

    Raises:
        SourceError: damaged, a JPEG (its colours are not exact), or a colour that the palette does not have.
    """
    if data.startswith(b"\xff\xd8\xff"):
        raise SourceError(f"{where}: the label map is a JPEG, whose compression changes colours; store it as PNG")
    try:
        rgb = codec.decode_image(data, where)
    except codec.CodecError as error:
        raise SourceError(str(error)) from error
    codes = rgb.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
    known = sorted((r << 16 | g << 8 | b, name) for name, (r, g, b) in colours)
    keys = np.array([code for code, _ in known], dtype=np.int32)
    ids = np.array([class_names.index(name) if name in class_names else IGNORE_INDEX for _, name in known], dtype=np.int32)
    position = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
    bad = keys[position] != codes
    if bad.any():
        row, column = np.argwhere(bad)[0]
        colour = " ".join(map(str, rgb[row, column].tolist()))
        raise SourceError(f"{where}: colour {colour} at x {column}, y {row} ({int(bad.sum())} pixels) is not in the palette; add its line")
    return ids[position]
