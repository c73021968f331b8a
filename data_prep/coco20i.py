"""COCO-20i (Nguyen and Todorovic 2019): COCO 2014 with masks of 80 classes, for all four folds at once.

    ROOT/{train2014,val2014}/COCO_train2014_<12 digits>.jpg           (or ROOT/COCO2014/...)
    ROOT/annotations/{train2014,val2014}/COCO_train2014_<12 digits>.png

These are HSNet's masks, 0 for background and 1..80 for the classes. Fusioner's layouts are read too: `annotation` in place of
`annotations`, and the doubled folders `train2014/train2014` and `annotation/train2014/train2014`. Photos without a mask are left
out. Without masks (or by `--label-files instances`), label maps are drawn from ROOT/annotations/instances_{train2014,val2014}.json
as `coco_object` draws them. How the published masks were drawn is not documented, so these may differ where objects overlap and
at crowds, and numbers measured on them are not those of the benchmark.

Which classes are held out is decided when the shards are read (`ofaseg.data.folds`). Class names are spelt as in the benchmark
("trafficlight", "sofa"), as published models read them; `--natural-names` writes COCO's ("traffic light", "couch").
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.coco_object import CocoInstancesSource
from data_prep.paired import PairSource, find_folder, look_up, value_table
from data_prep.pascal5i import NATURAL_HELP
from data_prep.source import Source, read_label_file
from data_prep.voc_layout import listed_pairs
from ofaseg.data.folds import class_names
from ofaseg.data.pairs import files_by_stem
from ofaseg.vocabulary import ClassVocabulary

SPLITS = ("train", "val")
_YEAR = "2014"
_UNLABELLED = 255


def vocabulary(natural_names: bool = False) -> ClassVocabulary:
    """Background and the 80 classes in COCO's order; class ids are the values of the masks."""
    names = ("background", *class_names("coco20i", natural_names))
    return ClassVocabulary(names=names, thing=tuple(k > 0 for k in range(len(names))), source="COCO-20i, background and 80 classes")


class Coco20iSource(PairSource):
    """The photos of one split that have a mask.

    Args:
        root: see the module's docstring.
        split: train or val.

    Raises:
        FileNotFoundError: a folder is missing.
        SourceError: a mask without a photo, or no mask.
    """

    def __init__(self, root, split: str, natural_names: bool = False, on_bad_sample: str = "raise"):
        images = find_folder(root, _folders(split), "photos")
        labels = find_folder(root, _label_folders(split), "masks")
        stems = list(files_by_stem(labels, (".png",)))
        super().__init__(vocabulary(natural_names), listed_pairs(stems, images, labels), on_bad_sample)
        self.table = value_table(range(81), (_UNLABELLED,))

    def read_label_map(self, path: Path) -> np.ndarray:
        problem = "COCO-20i's masks hold 0 (background) and 1..80. Are these pixel maps of COCO-Stuff?"
        return look_up(read_label_file(path), self.table, path, problem)


def _folders(split: str, above: str = "") -> list[str]:
    """Where the photos of a split may lie, or with `above` its masks."""
    name = f"{split}{_YEAR}"
    return [f"{root}{above}{folder}" for root in ("", "COCO2014/") for folder in (f"{name}/{name}", name)]


def _label_folders(split: str) -> list[str]:
    return [*_folders(split, "annotations/"), *_folders(split, "annotation/")]


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--natural-names", action="store_true", help=NATURAL_HELP)
    choices = ("auto", "masks", "instances")
    parser.add_argument("--label-files", default="auto", choices=choices, help="HSNet's masks, or label maps drawn from COCO's JSON")


def open_split(root, split: str, args: argparse.Namespace) -> Source:
    """The photos of a split. Raises as `Coco20iSource` and `coco_object.CocoInstancesSource`."""
    if args.label_files == "instances" or (args.label_files == "auto" and _only_instances(Path(root), split)):
        source = CocoInstancesSource(root, split, _YEAR)
        source.vocabulary = vocabulary(args.natural_names)  # the same classes in the same order
        return source
    return Coco20iSource(root, split, args.natural_names, getattr(args, "on_bad_sample", "raise"))


def _only_instances(root: Path, split: str) -> bool:
    has_masks = any((root / folder).is_dir() for folder in _label_folders(split))
    return (root / "annotations" / f"instances_{split}{_YEAR}.json").is_file() and not has_masks
