"""COCO-Stuff (Caesar, Uijlings, Ferrari 2018): COCO 2017 photos with pixel maps of 80 thing and 91 stuff classes.

    ROOT/images/{train2017,val2017}/<id>.jpg            (or ROOT/{train2017,val2017}/<id>.jpg)
    ROOT/annotations/{train2017,val2017}/<id>.png       (or ROOT/stuffthingmaps/{train2017,val2017}/<id>.png)

The folders may also be named train and val, and annotations labels. Two kinds of label files are read, told apart by their names:

- `<id>.png`, the official pixel maps (stuffthingmaps_trainval2017.zip): the COCO-Stuff id minus one, 0..181, of which eleven
  are unused, and 255 for no label. The 171 ids in use are numbered 0..170 in increasing order.
- `<id>_labelTrainIds.png`, as mmsegmentation's conversion makes them beside the others: already 0..170, and 255 for no label.

Where both lie in one folder, the official ones are read; `--label-files train-ids` chooses the others. The names of the classes
are written as plain words ("marble floor" for "floor-marble"), since models read them.
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.paired import PairSource, find_folder, look_up, read_class_names, value_table
from data_prep.source import read_label_file
from ofaseg.data.pairs import files_by_stem, pair_by_stem
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

SPLITS = ("train", "val")
UNUSED_IDS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Values 0..181 of the pixel maps that stand for no class."""
NUM_THINGS = 80
_UNLABELLED = 255
_TRAIN_ID_ENDING = "_labelTrainIds"


def vocabulary() -> ClassVocabulary:
    """The 171 classes: 80 things in COCO's order, then 91 kinds of stuff."""
    names = read_class_names("coco_stuff171")
    return ClassVocabulary(names=names, thing=tuple(k < NUM_THINGS for k in range(len(names))), source="COCO-Stuff, 171 classes")


def label_table(train_ids: bool) -> np.ndarray:
    """(256,) int32: class 0..170 of each value of a label file, see `paired.value_table`."""
    classes = range(171) if train_ids else [value for value in range(182) if value not in UNUSED_IDS]
    return value_table(classes, (_UNLABELLED,))


class CocoStuffSource(PairSource):
    """The photos of one split with the classes of `vocabulary`.

    Args:
        root: see the module's docstring.
        split: train or val.
        label_files: "pixel-maps", "train-ids", or "auto".
        classes: (171,) int32 class id of `vocabulary` for each of the 171 classes, or `IGNORE_INDEX`.

    Raises:
        FileNotFoundError: a folder is missing.
        SourceError: a photo without label map or the reverse, or no photo.
    """

    def __init__(
        self, root, split: str, vocabulary: ClassVocabulary, classes: np.ndarray, label_files: str = "auto", on_bad_sample: str = "raise"
    ):
        folders = (f"{split}2017", split)
        images = find_folder(root, [f"{above}{name}" for above in ("images/", "") for name in folders], "photos")
        above_labels = ("annotations/", "stuffthingmaps/", "labels/")
        labels = find_folder(root, [f"{above}{name}" for above in above_labels for name in folders], "label maps")
        self.train_ids = label_files == "train-ids" or (label_files == "auto" and not _has_pixel_maps(labels))
        endings = {"label_ending": _TRAIN_ID_ENDING} if self.train_ids else {"label_passed_over": _TRAIN_ID_ENDING}
        super().__init__(vocabulary, pair_by_stem(images, labels, **endings, label_suffixes=(".png",)), on_bad_sample)
        self.table = label_table(self.train_ids)
        known = self.table >= 0
        self.table[known] = classes[self.table[known]]

    def read_label_map(self, path: Path) -> np.ndarray:
        if self.train_ids:
            problem = "files named _labelTrainIds hold 0..170 and 255 (no label); are these the official pixel maps under another name?"
        else:
            unused = ", ".join(map(str, UNUSED_IDS))
            problem = f"official pixel maps hold 0..181 without {unused}, and 255 (no label); for train ids, see --label-files"
        return look_up(read_label_file(path), self.table, path, problem)


def _has_pixel_maps(labels: Path) -> bool:
    return bool(files_by_stem(labels, (".png",), passed_over=_TRAIN_ID_ENDING))


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument(
        "--label-files",
        default="auto",
        choices=("auto", "pixel-maps", "train-ids"),
        help="the official pixel maps <id>.png, or <id>_labelTrainIds.png (default: the first where there are any)",
    )


def open_split(root, split: str, args: argparse.Namespace) -> CocoStuffSource:
    """The photos of a split with all 171 classes. Raises as `CocoStuffSource`."""
    classes = np.arange(171, dtype=np.int32)
    return CocoStuffSource(root, split, vocabulary(), classes, args.label_files, getattr(args, "on_bad_sample", "raise"))


def subset_of_classes(names) -> np.ndarray:
    """(171,) int32: position in `names` of each of the 171 classes, `IGNORE_INDEX` for those that are not among them."""
    all_names = read_class_names("coco_stuff171")
    classes = np.full(len(all_names), IGNORE_INDEX, dtype=np.int32)
    classes[[all_names.index(name) for name in names]] = np.arange(len(names))
    return classes
