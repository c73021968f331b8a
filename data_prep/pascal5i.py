"""PASCAL-5i (Shaban et al. 2017): PASCAL VOC 2012 with the label maps of SBD, for all four folds at once.

    ROOT/VOCdevkit/VOC2012/JPEGImages/<stem>.jpg            (or ROOT/VOC2012/..., or ROOT/...)
    ROOT/VOCdevkit/VOC2012/SegmentationClassAug/<stem>.png  (or beside VOC2012, or ROOT/SegmentationClassAug)
    ROOT/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt   one stem per line; for training also trainaug.txt or train_aug.txt

The second line is HSNet's layout, the folder at the root Fusioner's. Without a list of training photos, those are all that have a
label map and are not listed in val.txt. Which classes are held out is decided when the shards are read (`ofaseg.data.folds`).

Value 0 is background, 1..20 are the classes in PASCAL's order, 255 (borders) is no label. Class names are spelt as in the benchmark
("pottedplant"), as published models read them; `--natural-names` writes "potted plant".
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.paired import PairSource, find_folder, look_up, value_table
from data_prep.source import read_label_file
from data_prep.voc_layout import first_file, listed_pairs, read_stems, voc_colours, year_folder
from ofaseg.data.folds import class_names
from ofaseg.data.pairs import files_by_stem
from ofaseg.vocabulary import ClassVocabulary

SPLITS = ("train", "val")
NATURAL_HELP = "class names in natural words, such as 'potted plant' for 'pottedplant'"
_BORDER = 255


def vocabulary(natural_names: bool = False) -> ClassVocabulary:
    """Background and the 20 classes with the colours of the devkit; class ids are the numbers of the published lists."""
    names = ("background", *class_names("pascal5i", natural_names))
    thing = tuple(k > 0 for k in range(len(names)))
    return ClassVocabulary(names=names, thing=thing, palette=voc_colours(len(names)), source="PASCAL-5i, background and 20 classes")


class Pascal5iSource(PairSource):
    """The photos of training (10,582 in the release) or testing (1,449).

    Args:
        root: see the module's docstring.
        split: train or val.

    Raises:
        FileNotFoundError: a folder or val.txt is missing.
        SourceError: a photo or a label map that a list names is missing.
    """

    def __init__(self, root, split: str, natural_names: bool = False, on_bad_sample: str = "raise"):
        folder = year_folder(root, "2012")
        places = ("VOCdevkit/VOC2012", "VOC2012", "VOCdevkit", ".")
        labels = find_folder(root, [f"{place}/SegmentationClassAug" for place in places], "label maps")
        lists = folder / "ImageSets" / "Segmentation"
        augmented = [lists / f"{name}.txt" for name in ("trainaug", "train_aug")]
        if split == "val" or first_file(augmented):
            stems = read_stems([lists / "val.txt"] if split == "val" else augmented)
        else:
            tested = set(read_stems([lists / "val.txt"]))
            stems = [stem for stem in files_by_stem(labels, (".png",)) if stem not in tested]
        super().__init__(vocabulary(natural_names), listed_pairs(stems, folder / "JPEGImages", labels), on_bad_sample)
        self.table = value_table(range(21), (_BORDER,))

    def read_label_map(self, path: Path) -> np.ndarray:
        return look_up(read_label_file(path), self.table, path, "VOC has 0 (background), 1..20 and 255 (border). Is it another dataset?")


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--natural-names", action="store_true", help=NATURAL_HELP)


def open_split(root, split: str, args: argparse.Namespace) -> Pascal5iSource:
    """The photos of a split. Raises as `Pascal5iSource`."""
    return Pascal5iSource(root, split, args.natural_names, getattr(args, "on_bad_sample", "raise"))
