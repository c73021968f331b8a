"""Cityscapes (Cordts et al. 2016): street scenes with the 19 evaluated classes, from the fine annotations.

    ROOT/leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png
    ROOT/gtFine/{train,val}/<city>/<name>_gtFine_labelIds.png

The 34 values of `labelIds` files are mapped to the 19 train ids; every other value is no label. `_gtFine_labelTrainIds.png`
files, as cityscapesScripts makes them (0..18, and 255 for no label), are read where there are no `labelIds`, or with
`--label-files train-ids`. The public labels of the test split are empty, so it is not offered.
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.paired import PairSource, find_folder, look_up, read_class_names, value_table
from data_prep.source import read_label_file
from ofaseg.data.pairs import files_by_stem, pair_by_stem
from ofaseg.vocabulary import ClassVocabulary

SPLITS = ("train", "val")
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Value in a `labelIds` file of class 0..18."""
_NUM_LABEL_IDS = 34
_FIRST_THING = 11
_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip


def vocabulary() -> ClassVocabulary:
    """The 19 classes in train-id order with the colours of the release."""
    names = read_class_names("cityscapes19")
    thing = tuple(k >= _FIRST_THING for k in range(len(names)))
    return ClassVocabulary(names=names, thing=thing, palette=_PALETTE, source="Cityscapes, 19 classes")


class CityscapesSource(PairSource):
    """The frames of one split; ids are "<city>/<name>".

    Args:
        root: see the module's docstring.
        split: a folder below leftImg8bit and gtFine.
        label_files: "label-ids", "train-ids", or "auto".

    Raises:
        FileNotFoundError: a folder is missing.
        SourceError: a photo without label map or the reverse, or no photo.
    """

    def __init__(self, root, split: str, label_files: str = "auto", on_bad_sample: str = "raise"):
        images = find_folder(root, [f"leftImg8bit/{split}"], "photos")
        labels = find_folder(root, [f"gtFine/{split}"], "label maps")
        has_label_ids = bool(files_by_stem(labels, (".png",), "_gtFine_labelIds"))
        self.train_ids = label_files == "train-ids" or (label_files == "auto" and not has_label_ids)
        ending = "_gtFine_labelTrainIds" if self.train_ids else "_gtFine_labelIds"
        super().__init__(vocabulary(), pair_by_stem(images, labels, "_leftImg8bit", ending, label_suffixes=(".png",)), on_bad_sample)
        others = sorted(set(range(_NUM_LABEL_IDS)) - set(LABEL_IDS))
        self.table = value_table(range(len(LABEL_IDS)), (255,)) if self.train_ids else value_table(LABEL_IDS, (*others, 255))

    def read_label_map(self, path: Path) -> np.ndarray:
        expected = "labelTrainIds files hold 0..18 and 255" if self.train_ids else "labelIds files hold 0..33"
        return look_up(read_label_file(path), self.table, path, f"{expected}; copy the file again from the release")


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument(
        "--label-files",
        default="auto",
        choices=("auto", "label-ids", "train-ids"),
        help="_gtFine_labelIds.png of the release, or _gtFine_labelTrainIds.png (default: the first where there are any)",
    )


def open_split(root, split: str, args: argparse.Namespace) -> CityscapesSource:
    """The frames of a split. Raises as `CityscapesSource`."""
    return CityscapesSource(root, split, args.label_files, getattr(args, "on_bad_sample", "raise"))
