"""Datasets that keep photos and label maps apart: what their converters share."""

from pathlib import Path
from typing import Sequence

import numpy as np

from data_prep.source import Source, SourceError
from ofaseg.data import codec
from ofaseg.data.pairs import Pairing
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary, parse_class_names

_CLASS_NAMES = Path(__file__).parent / "class_names"
_KEPT_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_FAULTS_SHOWN = 5


def read_class_names(name: str) -> tuple[str, ...]:
    """The class names of `class_names/<name>.txt`; those of its folder `verbatim` are a data set's own, the others plain words."""
    return parse_class_names(str(_CLASS_NAMES / f"{name}.txt"))


def find_folder(root, candidates: Sequence[str], what: str) -> Path:
    """The first of the folders `candidates` (relative to `root`) that is there.

    Raises:
        FileNotFoundError: none is, or `root` is no folder; the message lists them and says that `what` should lie there.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: no such folder; --root is the folder above {' or '.join(candidates)}")
    for candidate in candidates:
        if (Path(root) / candidate).is_dir():
            return Path(root) / candidate
    expected = " or ".join(str(Path(root) / candidate) for candidate in candidates)
    raise FileNotFoundError(f"{root}: no folder of {what}; expected {expected}. Give the folder above it as --root")


def photo_bytes(path) -> bytes:
    """The bytes of a photo: JPEG and PNG files as they are, other formats (BMP, TIFF, WebP) as PNG of the same pixels.

    Raises:
        FileNotFoundError: there is no such file.
        SourceError: another format that cannot be decoded.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: photo not found; it was there when the files were listed") from error
    return kept_or_png(data, str(path))


def kept_or_png(data: bytes, where: str) -> bytes:
    """`data` of a JPEG or PNG file as it is, of other images as PNG. Raises SourceError when those cannot be decoded."""
    if data.startswith(_KEPT_MAGIC):
        return data
    try:
        return codec.encode_image(codec.decode_image(data, where))
    except codec.CodecError as error:
        raise SourceError(str(error)) from error


class PairSource(Source):
    """Photos and label maps of the same stem; a subclass says by `read_label_map` what the values mean.

    Args:
        pairing: from `ofaseg.data.pairs.pair_by_stem`.
        on_bad_sample: "raise" refuses a pairing with faults; with "skip" each fault is a sample whose reading raises, at the
            end of the others, so that who writes the shards counts and lists it.

    Raises:
        SourceError: a fault of the pairing (with "raise"), or no pair at all.
    """

    def __init__(self, vocabulary: ClassVocabulary, pairing: Pairing, on_bad_sample: str = "raise"):
        self.vocabulary = vocabulary
        self.pairs, self.faults = pairing
        if self.faults and on_bad_sample != "skip":
            lines = [str(fault) for fault in self.faults[:_FAULTS_SHOWN]]
            if len(self.faults) > _FAULTS_SHOWN:
                lines.append(f"... and {len(self.faults) - _FAULTS_SHOWN} more")
            raise SourceError("\n".join([*lines, "correct the names, or leave these files out with --on-bad-sample skip"]))
        if not self.pairs:
            raise SourceError("no photo with a label map of the same name was found; compare the folders with the expected layout")

    def __len__(self) -> int:
        return len(self.pairs) + len(self.faults)

    def __getitem__(self, i: int) -> dict:
        """Raises FileNotFoundError or SourceError for a missing, damaged or unusable file."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} is outside 0..{len(self) - 1}")
        if i >= len(self.pairs):
            raise SourceError(str(self.faults[i - len(self.pairs)]))
        pair = self.pairs[i]
        return {"id": pair.stem, "image": photo_bytes(pair.image), "label_map": self.read_label_map(pair.label_map)}

    def read_label_map(self, path: Path) -> np.ndarray | bytes:
        """(H, W) class ids with `IGNORE_INDEX`, or the bytes of a PNG whose values are those of the vocabulary."""
        raise NotImplementedError

    def name(self, i: int) -> str:
        return str(self.pairs[i].image) if i < len(self.pairs) else self.faults[i - len(self.pairs)].file

    def files(self, i: int) -> tuple[str, ...]:
        if i >= len(self.pairs):
            return (self.name(i),)
        return str(self.pairs[i].image), str(self.pairs[i].label_map)


def look_up(stored: np.ndarray, table: np.ndarray, path, problem: str) -> np.ndarray:
    """`table[stored]` as (H, W) int32 class ids.

    Args:
        stored: (H, W) values of a label file.
        table: (N,) class id or `IGNORE_INDEX` of value 0..N-1; `UNKNOWN` marks values that should not occur.
        problem: ends the message about such a value.

    Raises:
        SourceError: a value that `table` does not know; the message names the file, the value and the first pixel.
    """
    label_map = table[np.minimum(stored, len(table) - 1)]
    bad = (label_map == UNKNOWN) | (stored >= len(table))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise SourceError(f"{path}: label value {stored[row, column]} at x {column}, y {row}; {problem}")
    return label_map


UNKNOWN = -2
"""Marks values of a label file that are neither a class nor "no label"."""


def value_table(classes, ignored, size: int = 256) -> np.ndarray:
    """(size,) int32: class k for value `classes[k]`, `IGNORE_INDEX` for the values `ignored`, `UNKNOWN` elsewhere."""
    table = np.full(size, UNKNOWN, dtype=np.int32)
    table[list(ignored)] = IGNORE_INDEX
    table[list(classes)] = np.arange(len(classes))
    return table
