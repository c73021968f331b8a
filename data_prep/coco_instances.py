"""COCO 2017 instances: photos with objects of 80 classes, each with a mask of its own, with FreeSeg's base and novel classes.

    ROOT/annotations/instances_{train2017,val2017}.json
    ROOT/images/{train2017,val2017}/<id>.jpg              (or ROOT/{train2017,val2017}/)

Polygons are drawn by pycocotools. The seven novel classes are those by which FreeSeg's published AP is split.
"""

import argparse

from data_prep.annotation_file import AnnotationFile
from data_prep.coco_format import KEPT, CocoFormatSource, common_categories, open_files
from data_prep.coco_panoptic import in_published_order
from data_prep.coco_segments import select_categories
from data_prep.paired import read_class_names

SPLITS = ("train", "val")
NOVEL = ("cow", "giraffe", "suitcase", "frisbee", "skateboard", "carrot", "scissors")


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--classes", default="all", choices=KEPT, help="classes to keep; what belongs to others has no label")


def open_split(root, split: str, args: argparse.Namespace) -> CocoFormatSource:
    """The photos of a split. Raises as `CocoFormatSource`, or SourceError for other categories than COCO's."""
    photos, _, instances = open_files(root, f"{split}2017")
    if instances is None:
        instances = AnnotationFile(f"{root}/annotations/instances_{split}2017.json")  # which says what is missing
    entries, where = common_categories(None, instances)
    entries = in_published_order(entries, read_class_names("coco_object81")[1:], where)
    return CocoFormatSource(select_categories(entries, NOVEL, args.classes, "COCO instances, 80 classes"), photos, None, instances)
