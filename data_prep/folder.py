"""A user's own folder: photos, label maps of the same names, and a list of class names.

    ROOT/images[/<split>]/**/<stem>.jpg     (.png, .bmp, .tif, .webp, .gif; `--images SUBDIR` for another name than images)
    ROOT/labels[/<split>]/**/<stem>.png     (or labelme's <stem>.json; `--label-maps SUBDIR` for another name than labels)
    ROOT/classes.txt                        one class name per line (or `--class-names`)

Where names differ beside the stem they share, `--label-ending _mask` pairs a.jpg with a_mask.png, and `--image-ending` does so for photos.

The pixel values of a label map are class numbers from 0 (`--label-offset 1`: from 1) in the order of the list; 255 is no label
(`--ignore V[,V]` for other values). Palette PNGs are read by index. Colour-coded maps need `--palette FILE` with a line
"name r g b" for each colour; it can stand in for the class list.

Folders named train, val, test ... below both images and labels are the splits, and photos beside them are left out with a warning;
training or train2017 is split train, validation or val2017 split val, as training looks for them. Without such folders the
photos are divided into train and val by a hash of their stem, so that adding photos moves none (`--val-fraction`, default 0.2).

A folder that `tools/convert_shards.py --to folder` wrote is known by its metadata.json and gives back the rows it was made of.
"""

import argparse
import hashlib
import logging
from pathlib import Path
from typing import Optional

import numpy as np

from data_prep.label_values import add_label_arguments, label_map_to_store, listed_names, mark_novel, user_vocabulary
from data_prep.paired import PairSource, find_folder
from data_prep.palette import NamedColour, colours_to_ids, read_palette
from data_prep.source import Source, SourceError
from ofaseg.data.codec import CodecError
from ofaseg.data.exported_folder import FolderRows, read_metadata
from ofaseg.data.labelme import read_labelme
from ofaseg.data.pairs import Pairing, likely_endings, pair_by_stem
from ofaseg.data.rows import ShardError
from ofaseg.data.split_folders import find_split_folders, usual_names
from ofaseg.vocabulary import ClassVocabulary

logger = logging.getLogger(__name__)

_BY_HASH = ("train", "val")


def add_arguments(parser) -> None:
    """Options of this dataset."""
    add_label_arguments(parser)
    parser.add_argument("--images", default="images", metavar="SUBDIR", help="folder of the photos below --root (default images)")
    parser.add_argument("--label-maps", default="labels", metavar="SUBDIR", help="folder of the label maps below --root (default labels)")
    parser.add_argument("--image-ending", default="", metavar="TEXT", help="end of all photos' stems, _leftImg8bit; others are left out")
    parser.add_argument("--label-ending", default="", metavar="TEXT", help="end of all label maps' stems, _mask for a.jpg and a_mask.png")
    parser.add_argument("--palette", metavar="FILE", help="lines 'name r g b': the label maps are colour-coded")
    parser.add_argument("--val-fraction", type=float, default=0.2, help="share of val where there are no split folders (default 0.2)")


def list_splits(root, args: argparse.Namespace) -> list[str]:
    """The splits of the folder. Raises FileNotFoundError or SourceError when it has another layout."""
    metadata = read_metadata(root)
    if metadata is not None:
        return list(metadata["splits"])
    if not 0 <= args.val_fraction < 1:
        raise SourceError(f"--val-fraction {args.val_fraction} is outside 0..1; give the share of photos for val, such as 0.2")
    names, left_out = find_split_folders(*_folders(root, args))
    for fault in left_out:
        logger.warning("%s", fault)
    return list(usual_names(names)) or [split for split in _BY_HASH if split == "train" or args.val_fraction > 0]


def _folders(root, args: argparse.Namespace) -> tuple[Path, Path]:
    return find_folder(root, [args.images], "photos (--images)"), find_folder(root, [args.label_maps], "label maps (--label-maps)")


class FolderSource(PairSource):
    """The photos of one split and their label maps.

    Args:
        ignore: label values without a class, beside the vocabulary's.
        palette: for colour-coded maps, else None.
    """

    def __init__(
        self,
        vocabulary: ClassVocabulary,
        pairing: Pairing,
        ignore: tuple[int, ...] = (),
        palette: Optional[list[NamedColour]] = None,
        on_bad_sample: str = "raise",
    ):
        super().__init__(vocabulary, pairing, on_bad_sample)
        self.ignore = ignore
        self.palette = palette

    def read_label_map(self, path: Path) -> np.ndarray | bytes:
        if path.suffix.lower() == ".json":
            try:
                return read_labelme(path, self.vocabulary.names)
            except CodecError as error:
                raise SourceError(str(error)) from error
        data = path.read_bytes()
        if self.palette is not None:
            return colours_to_ids(data, self.palette, self.vocabulary.names, str(path))
        return label_map_to_store(data, self.vocabulary, self.ignore, str(path))


class ExportedFolderSource(Source):
    """One split of a folder that was written from shards: their rows as they were."""

    def __init__(self, root, split: str):
        self.rows = FolderRows(root, split)
        self.vocabulary = self.rows.vocabulary
        self.columns = self.rows.columns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        """Raises SourceError when a file of the row is missing."""
        try:
            return self.rows[i]
        except ShardError as error:
            raise SourceError(str(error)) from error

    def name(self, i: int) -> str:
        return str(self.rows.path(i, "image"))

    def files(self, i: int) -> tuple[str, ...]:
        paths = (self.rows.path(i, column) for column in ("image", "label_map", "segment_map") if column in self.columns)
        return tuple(str(path) for path in paths if path is not None)


def open_split(root, split: str, args: argparse.Namespace) -> Source:
    """The samples of a split.

    Raises:
        FileNotFoundError: a folder or the class list is missing.
        SourceError: photos and label maps do not pair, or an option does not fit.
        VocabularyError: an unusable class list.
    """
    if read_metadata(root) is not None:
        return ExportedFolderSource(root, split)
    on_bad_sample = getattr(args, "on_bad_sample", "raise")
    images, labels = _folders(root, args)
    palette = read_palette(args.palette) if args.palette else None
    vocabulary = mark_novel(_vocabulary(Path(root), args, palette), args.novel)
    ignore = tuple(args.ignore or ())
    folder = usual_names(find_split_folders(images, labels).names).get(split)
    if folder is not None:
        pairing = _pairing(images / folder, labels / folder, args)
        return FolderSource(vocabulary, pairing, ignore, palette, on_bad_sample)
    pairing = _pairing(images, labels, args)
    chosen = choose_by_hash([pair.stem for pair in pairing.pairs], args.val_fraction, split)
    # the faults of a folder without splits are those of its first one, so that they are counted once
    faults = pairing.faults if split == _BY_HASH[0] or on_bad_sample != "skip" else []
    pairs = [pair for pair in pairing.pairs if pair.stem in chosen]
    if pairing.pairs and not pairs:
        raise SourceError(f"{images}: one photo cannot be divided into train and val; give --val-fraction 0, or --splits train")
    return FolderSource(vocabulary, Pairing(pairs, faults), ignore, palette, on_bad_sample)


def _pairing(images: Path, labels: Path, args: argparse.Namespace) -> Pairing:
    """The pairs of two folders. Raises SourceError when there are none, and an ending of the names is the reason."""
    pairing = pair_by_stem(images, labels, args.image_ending, args.label_ending)
    if not pairing.pairs and (endings := likely_endings(images, labels)):
        raise SourceError(f"{labels}: no label map has the name of a photo in {images}, but most pair with {endings}: give that")
    return pairing


def _vocabulary(root: Path, args: argparse.Namespace, palette: Optional[list[NamedColour]]) -> ClassVocabulary:
    """The classes with the stored values of the user's maps; with a palette, its colours. Raises as `open_split`."""
    class_file = root / "classes.txt"
    if args.class_names or class_file.is_file():
        names = listed_names(args.class_names or str(class_file))
    elif palette is not None:
        names = tuple(entry.name for entry in palette)
    else:
        cure = "write one per line there, in the order of the label values, or give --class-names"
        raise FileNotFoundError(f"{class_file}: no class names; {cure}")
    if palette is None:
        return user_vocabulary(names, args.label_offset, args.ignore, source=f"folder {root.resolve().name}")
    colours = {entry.name: entry.rgb for entry in palette}
    without = [name for name in names if name not in colours]
    if without:
        raise SourceError(f"{args.palette}: no colour for class {without[0]!r}; add its line, or take it out of the class list")
    return ClassVocabulary(names=names, palette=tuple(colours[name] for name in names), source=f"folder {root.resolve().name}")


def choose_by_hash(stems: list[str], val_fraction: float, split: str) -> set[str]:
    """The stems of "train" or "val". Each stem's place follows from its own hash; neither is empty when there are two stems.

    Args:
        val_fraction: expected share of val, 0 <= val_fraction < 1; 0 puts all into train.
    """
    if val_fraction == 0:
        return set(stems) if split == "train" else set()
    places = {stem: int.from_bytes(hashlib.sha256(stem.encode("utf-8")).digest()[:8], "big") / 2**64 for stem in stems}
    val = {stem for stem, place in places.items() if place < val_fraction}
    if len(places) > 1 and not val:
        val = {min(places, key=places.get)}
    elif len(places) > 1 and len(val) == len(places):
        val -= {max(places, key=places.get)}
    return val if split == "val" else set(places) - val
