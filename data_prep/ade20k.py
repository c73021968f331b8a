"""ADE20K, SceneParse150 (Zhou et al. 2017): photos with 150 classes, as in ADEChallengeData2016.zip.

    ROOT/images/{training,validation}/<stem>.jpg
    ROOT/annotations/{training,validation}/<stem>.png

The folders may also be named train and val, and annotations labels. The release stores 0 for "other" (no label here) and
1..150 for the classes in the order of `class_names/ade150.txt`. Some copies were shifted to start at zero (0..149, and 150 or
255 for no label): `--zero-based` reads those. Reading either as the other would move every class by one, so values that only
the other kind has are an error.
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.paired import PairSource, find_folder, look_up, read_class_names, value_table
from data_prep.source import read_label_file
from ofaseg.data.pairs import pair_by_stem
from ofaseg.vocabulary import ClassVocabulary

SPLITS = ("train", "val")
_FOLDERS = {"train": ("training", "train"), "val": ("validation", "val")}


def vocabulary() -> ClassVocabulary:
    """The 150 classes."""
    return ClassVocabulary(names=read_class_names("ade150"), source="ADE20K, SceneParse150")


class Ade20kSource(PairSource):
    """The photos of one split.

    Args:
        root: see the module's docstring.
        split: train or val.
        zero_based: label values start at 0, see the module's docstring.

    Raises:
        FileNotFoundError: a folder is missing.
        SourceError: a photo without label map or the reverse, or no photo.
    """

    def __init__(self, root, split: str, zero_based: bool = False, on_bad_sample: str = "raise"):
        images = find_folder(root, [f"images/{name}" for name in _FOLDERS[split]], "photos")
        above_labels = ("annotations", "labels")
        labels = find_folder(root, [f"{above}/{name}" for above in above_labels for name in _FOLDERS[split]], "label maps")
        super().__init__(vocabulary(), pair_by_stem(images, labels, label_suffixes=(".png",)), on_bad_sample)
        self.zero_based = zero_based
        self.table = value_table(range(150), (150, 255)) if zero_based else value_table(range(1, 151), (0,))

    def read_label_map(self, path: Path) -> np.ndarray:
        if self.zero_based:
            problem = "with --zero-based 0..149 are classes, 150 and 255 no label; is it another release?"
        else:
            problem = (
                "SceneParse150 holds 0 (other) and 1..150. A 255 is the mark of copies that were shifted to start at 0: "
                "read those with --zero-based"
            )
        return look_up(read_label_file(path), self.table, path, problem)


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--zero-based", action="store_true", help="label values 0..149 are the classes, 150 and 255 no label")


def open_split(root, split: str, args: argparse.Namespace) -> Ade20kSource:
    """The photos of a split. Raises as `Ade20kSource`."""
    return Ade20kSource(root, split, args.zero_based, getattr(args, "on_bad_sample", "raise"))
