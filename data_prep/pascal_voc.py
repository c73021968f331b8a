"""PASCAL VOC 2012 (Everingham et al.): photos with 20 classes of objects and background.

    ROOT/JPEGImages/<stem>.jpg                             (or ROOT/VOCdevkit/VOC2012/..., or ROOT/VOC2012/...)
    ROOT/SegmentationClass/<stem>.png                      palette images, read as the numbers they store
    ROOT/ImageSets/Segmentation/{train,val,trainval}.txt   one stem per line
    ROOT/SegmentationClassAug/<stem>.png                   with train_aug.txt (or trainaug.txt) in ImageSets/Segmentation:
                                                           the 10,582 photos with the label maps of SBD

Value 0 is background, 1..20 are the classes in the order of `class_names/voc21.txt`, 255 (borders) is no label. Without
`--splits`, train and val are written; trainval and train_aug overlap with train and are written when named. The names are
those that SimSeg is scored with ("table", "plant", "monitor" for diningtable, pottedplant, tvmonitor).
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.paired import PairSource, find_folder, look_up, read_class_names, value_table
from data_prep.source import read_label_file
from data_prep.voc_layout import NO_BACKGROUND_HELP, listed_pairs, read_stems, voc_colours, without_first_class, year_folder
from ofaseg.vocabulary import ClassVocabulary

SPLITS = ("train", "val", "trainval", "train_aug")
_DISJOINT_SPLITS = ("train", "val")
_BORDER = 255


def vocabulary() -> ClassVocabulary:
    """Background and the 20 classes with the colours of the devkit."""
    names = read_class_names("voc21")
    thing = tuple(k > 0 for k in range(len(names)))
    return ClassVocabulary(names=names, thing=thing, palette=voc_colours(len(names)), source="PASCAL VOC 2012, 21 classes")


class PascalVocSource(PairSource):
    """The photos of one split, in the order of its list.

    Args:
        root: see the module's docstring.
        split: one of `SPLITS`.
        background: False leaves class 0 out.

    Raises:
        FileNotFoundError: a folder or the list of the split is missing.
        SourceError: a photo or a label map that the list names is missing.
    """

    def __init__(self, root, split: str, background: bool = True, on_bad_sample: str = "raise"):
        folder = year_folder(root, "2012")
        lists = ("train_aug", "trainaug") if split == "train_aug" else (split,)
        stems = read_stems([folder / "ImageSets" / "Segmentation" / f"{name}.txt" for name in lists])
        labels = find_folder(folder, ["SegmentationClassAug" if split == "train_aug" else "SegmentationClass"], "label maps")
        classes = vocabulary() if background else without_first_class(vocabulary())
        super().__init__(classes, listed_pairs(stems, folder / "JPEGImages", labels), on_bad_sample)
        self.table = value_table(range(21), (_BORDER,)) if background else value_table(range(1, 21), (0, _BORDER))

    def read_label_map(self, path: Path) -> np.ndarray:
        return look_up(read_label_file(path), self.table, path, "VOC has 0 (background), 1..20 and 255 (border). Is it another dataset?")


def list_splits(root, args: argparse.Namespace) -> tuple[str, ...]:
    """Every split when some are named, else those that share no photo."""
    return SPLITS if args.splits else _DISJOINT_SPLITS


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--no-background", action="store_true", help=NO_BACKGROUND_HELP)


def open_split(root, split: str, args: argparse.Namespace) -> PascalVocSource:
    """The photos of a split. Raises as `PascalVocSource`."""
    return PascalVocSource(root, split, not args.no_background, getattr(args, "on_bad_sample", "raise"))
