"""CamVid (Brostow, Fauqueur, Cipolla 2008): frames of driving videos, 11 classes, 367 / 101 / 233 frames.

Two layouts are read. The first keeps photos and labels apart and lists the stems of a split, in order, in a text file:

    ROOT/train.txt val.txt test.txt
    ROOT/images/{train,val,test}/<stem>.jpg (or .png)
    ROOT/labels/{train,val,test}/<stem>.png

The second is that of the SegNet release: `ROOT/{train,val,test}/<stem>.png` with `ROOT/{train,val,test}annot/<stem>.png`.
Label values are 0..10 in the order of `class_names/camvid11.txt`; 11 (the release's "void") and 255 are "no label". The
release's names SignSymbol, Pavement ... stand in the list as plain words, since models read them.
"""

import argparse
from pathlib import Path
from typing import Optional

import numpy as np

from data_prep.source import Source, SourceError, read_label_file
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary, parse_class_names

SPLITS = ("train", "val", "test")
_VOID = 11
_UNLABELLED = 255
_THINGS = ("car", "pedestrian", "bicyclist")
_PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip


def vocabulary() -> ClassVocabulary:
    """The 11 classes with the colours of the SegNet release."""
    names = parse_class_names(str(Path(__file__).parent / "class_names" / "camvid11.txt"))
    return ClassVocabulary(names=names, thing=tuple(name in _THINGS for name in names), palette=_PALETTE, source="CamVid, 11 classes")


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    """(photos, labels) of a split. Raises FileNotFoundError with the expected layout."""
    layouts = [(root / "images" / split, root / "labels" / split), (root / split, root / f"{split}annot")]
    for images, labels in layouts:
        if images.is_dir() and labels.is_dir():
            return images, labels
    raise FileNotFoundError(
        f"{root}: no CamVid split {split!r}; expected {layouts[0][0]} with .jpg or .png photos and {layouts[0][1]} with .png labels "
        f"(or the SegNet layout {layouts[1][0]} and {layouts[1][1]}); give the folder above them as --root"
    )


def list_stems(root, split: str) -> list[str]:
    """Sample names of a split: the lines of ROOT/<split>.txt, else the sorted names of the photos and of the label maps.

    Raises:
        FileNotFoundError: the layout is another one, or there is no photo.
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"camvid has no split {split!r}; choose from {', '.join(SPLITS)}")
    root = Path(root)
    images, labels = _folders(root, split)
    listing = root / f"{split}.txt"
    if listing.is_file():  # the release's list holds pairs of paths, ours plain stems
        stems = [Path(line.split()[0]).stem for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        photos = {path.stem for path in images.iterdir() if path.suffix in (".jpg", ".png")}
        lone_maps = {path.stem for path in labels.iterdir() if path.suffix == ".png"} - photos
        stems = sorted(photos | lone_maps) if photos else []  # a lone map is a sample that cannot be read, and so is named
    if not stems:
        raise FileNotFoundError(f"{images}: no photo found for split {split!r}; expected <stem>.jpg or <stem>.png")
    return stems


class CamVidSource(Source):
    """The frames of one split; photos are kept as files, label maps become (H, W) int32 class ids."""

    def __init__(self, root, split: str):
        self.vocabulary = vocabulary()
        self.stems = list_stems(root, split)
        self.images, self.labels = _folders(Path(root), split)
        self.listing = Path(root) / f"{split}.txt"

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, i: int) -> dict:
        """Raises FileNotFoundError for a missing file, SourceError for a damaged map or a value that is no class."""
        stem, photo = self.stems[i], self._photo(i)
        if photo is None:
            other = f"take the name out of {self.listing}" if self.listing.is_file() else f"remove {self._label(i)}"
            raise FileNotFoundError(f"{self.images / stem}.jpg (or .png): photo not found; copy it, or {other}")
        return {"id": stem, "image": photo.read_bytes(), "label_map": read_label_map(self._label(i))}

    def name(self, i: int) -> str:
        return str(self._photo(i) or self.images / self.stems[i])

    def files(self, i: int) -> tuple[str, ...]:
        return self.name(i), str(self._label(i))

    def _photo(self, i: int) -> Optional[Path]:
        candidates = (self.images / f"{self.stems[i]}{suffix}" for suffix in (".jpg", ".png"))
        return next((path for path in candidates if path.is_file()), None)

    def _label(self, i: int) -> Path:
        return self.labels / f"{self.stems[i]}.png"


def open_split(root, split: str, args: argparse.Namespace) -> CamVidSource:
    """The frames of a split. Raises FileNotFoundError or ValueError as `list_stems`."""
    return CamVidSource(root, split)


def read_label_map(path: Path) -> np.ndarray:
    """(H, W) int32 class ids 0..10 of a CamVid label file, `IGNORE_INDEX` for void.

    Raises:
        FileNotFoundError: there is no such file.
        SourceError: it is damaged, or holds a value that is neither a class nor void.
    """
    stored = read_label_file(path)
    label_map = stored.astype(np.int32)
    label_map[(stored == _VOID) | (stored == _UNLABELLED)] = IGNORE_INDEX
    if label_map.max(initial=0) >= len(_PALETTE):
        raise SourceError(f"{path}: label value {label_map.max()}; CamVid has 0..10, 11 (void) and 255 (no label). Is it another release?")
    return label_map
