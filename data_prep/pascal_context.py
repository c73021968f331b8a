"""PASCAL Context (Mottaghi et al. 2014): photos of VOC 2010 with 59 classes of objects and stuff, and background.

    ROOT/JPEGImages/<stem>.jpg                               (or ROOT/VOCdevkit/VOC2010/..., or ROOT/VOC2010/...)
    ROOT/trainval_merged.json                                the annotations of PASCAL in Detail
    ROOT/SegmentationClassContext/<stem>.png                 or: maps that were made of them, 0..59
    ROOT/ImageSets/SegmentationContext/{train,val}.txt       with the maps: one stem per line

Maps are read where there are any, else the JSON file; `--label-files` chooses. Of the JSON, read without the Detail API: `images`
(`image_id`, `file_name`, `height`, `width`, and `phase`, the split) and `annos_segmentation` (`image_id`, `category_id`,
`segmentation` as run lengths; polygons are read too), drawn in file order, later ones on top. The 59 categories and 0 are
numbered in increasing order of `CATEGORY_IDS`, which is the alphabetical order of `class_names/context60.txt`. Background is a
class, also where nothing is drawn. With the JSON a split is all photos of its phase, by name; lists that were written with the
Detail API may lack a few of them, so where ROOT/ImageSets has a list of the split, the photos are those of the list.

Not read: the first release's `trainval/*.mat` (459 and 33 labels), and maps of 59 classes without background (0..58 and 255).
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.annotation_file import AnnotatedPhoto, AnnotationFile, AnnotationSource
from data_prep.mask_drawing import draw_mask
from data_prep.paired import PairSource, look_up, read_class_names, value_table
from data_prep.source import Source, SourceError, read_label_file
from data_prep.voc_layout import NO_BACKGROUND_HELP, first_file, listed_pairs, read_stems, without_first_class, year_folder
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

SPLITS = ("train", "val")
CATEGORY_IDS = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159, 162, 187,
    189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424,
    427, 440, 445, 454, 458,
)  # fmt: skip
"""`category_id` of class 0..59, of the 459 labels of the first release."""
_MAPS = "SegmentationClassContext"
_JSON = "trainval_merged.json"


def vocabulary(background: bool = True) -> ClassVocabulary:
    """Background and the 59 classes, or these alone."""
    classes = ClassVocabulary(names=read_class_names("context60"), source="PASCAL Context, 60 classes")
    return classes if background else without_first_class(classes)


class ContextMapSource(PairSource):
    """The photos of a split with the maps 0..59. Arguments and errors as `open_split`."""

    def __init__(self, folder: Path, split: str, background: bool, on_bad_sample: str = "raise"):
        stems = read_stems([_list_file(folder, split)])
        super().__init__(vocabulary(background), listed_pairs(stems, folder / "JPEGImages", folder / _MAPS), on_bad_sample)
        self.table = value_table(range(60), ()) if background else value_table(range(1, 60), (0,))

    def read_label_map(self, path: Path) -> np.ndarray:
        problem = f"maps of 60 classes hold 0..59; of maps of 59 classes (0..58 and 255) remove {_MAPS} and give {_JSON}"
        return look_up(read_label_file(path), self.table, path, problem)


class ContextJsonSource(AnnotationSource):
    """The photos of a split, drawn from the JSON file. Arguments and errors as `open_split`."""

    def __init__(self, folder: Path, split: str, background: bool):
        annotations = AnnotationFile(folder / _JSON, "annos_segmentation", "image_id")
        photos = sorted((photo for photo in annotations.photos if photo.phase == split), key=lambda photo: photo.file_name)
        if _list_file(folder, split).is_file():
            photos = _listed(photos, _list_file(folder, split), annotations.path)
        super().__init__(vocabulary(background), annotations, photos, folder / "JPEGImages")
        self.background = background

    def draw(self, photo: AnnotatedPhoto) -> np.ndarray:
        label_map = np.zeros((photo.height, photo.width), dtype=np.int32)
        for where, record in self.annotations.annotations(photo):
            category = record["category_id"]
            if category not in CATEGORY_IDS:
                raise SourceError(f"{where}: category_id {category} is none of the 60 of PASCAL Context; is it another file?")
            label_map[draw_mask(record.get("segmentation"), photo.height, photo.width, where)] = CATEGORY_IDS.index(category)
        if not self.background:
            label_map = np.where(label_map > 0, label_map - 1, IGNORE_INDEX).astype(np.int32)
        return label_map


def _list_file(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "SegmentationContext" / f"{split}.txt"


def _listed(photos: list[AnnotatedPhoto], list_file: Path, annotations: Path) -> list[AnnotatedPhoto]:
    by_stem = {Path(photo.file_name).stem: photo for photo in photos}
    stems = read_stems([list_file])
    unknown = [stem for stem in stems if stem not in by_stem]
    if unknown:
        raise SourceError(f"{list_file}: {unknown[0]} is no photo of this split in {annotations}; correct or remove the list")
    return [by_stem[stem] for stem in stems]


def add_arguments(parser) -> None:
    """Options of this dataset."""
    label_help = f"{_MAPS}/<stem>.png, or {_JSON} (default: the first where there are any)"
    parser.add_argument("--label-files", default="auto", choices=("auto", "maps", "json"), help=label_help)
    parser.add_argument("--no-background", action="store_true", help=NO_BACKGROUND_HELP)


def open_split(root, split: str, args: argparse.Namespace) -> Source:
    """The photos of a split.

    Raises:
        FileNotFoundError: a folder, the list of the split or the JSON file is missing.
        SourceError: a photo or a map that the list names is missing, or the JSON cannot be read.
    """
    folder = year_folder(root, "2010")
    found = {"maps": (folder / _MAPS).is_dir(), "json": first_file([folder / _JSON]) is not None}
    kind = args.label_files if args.label_files != "auto" else next((kind for kind, is_there in found.items() if is_there), None)
    if kind is None or not found[kind]:
        expected = {"maps": str(folder / _MAPS), "json": str(folder / _JSON)}
        raise FileNotFoundError(f"{folder}: no labels; expected {expected[kind] if kind else ' or '.join(expected.values())}")
    if kind == "maps":
        return ContextMapSource(folder, split, not args.no_background, getattr(args, "on_bad_sample", "raise"))
    return ContextJsonSource(folder, split, not args.no_background)
