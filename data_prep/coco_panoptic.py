"""COCO 2017 panoptic (Kirillov et al. 2019): 80 things and 53 kinds of stuff, with FreeSeg's base and novel classes.

    ROOT/annotations/panoptic_{train2017,val2017}.json and ROOT/annotations/panoptic_{train2017,val2017}/<id>.png
                                                       (or ROOT/panoptic_{train2017,val2017}/)
    ROOT/annotations/instances_{train2017,val2017}.json   with --with-instances: the objects with masks of their own, for mask AP
    ROOT/images/{train2017,val2017}/<id>.jpg              (or ROOT/{train2017,val2017}/)

Names are those of the file ("tree-merged"). The eleven novel classes are those by which FreeSeg's published PQ is split. Three of
them, `counted_as_base` in vocabulary.json, have no flag there when class scores are merged with CLIP's, and so has no merged class.
"""

import argparse

from data_prep.coco_format import KEPT, CocoFormatSource, common_categories, open_files
from data_prep.coco_segments import select_categories
from data_prep.paired import read_class_names
from data_prep.source import SourceError

SPLITS = ("train", "val")
NOVEL = ("cow", "giraffe", "suitcase", "frisbee", "skateboard", "carrot", "scissors", "cardboard", "playingfield", "river", "road")
COUNTED_AS_BASE = ("cardboard", "playingfield", "river")


def in_published_order(entries: list[dict], names: tuple[str, ...], where: str) -> list[dict]:
    """The categories in the order of `names`. Raises SourceError when they are others."""
    by_name = {entry["name"]: entry for entry in entries}
    other = [name for name in names if name not in by_name] + [name for name in by_name if name not in names]
    if other:
        raise SourceError(
            f"{where}: the categories differ from COCO's {len(names)}, first in {other[0]!r}; use coco_format for other classes"
        )
    return [by_name[name] for name in names]


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--classes", default="all", choices=KEPT, help="classes to keep; what belongs to others has no label")
    parser.add_argument("--with-instances", action="store_true", help="also the objects of the instances file")


def open_split(root, split: str, args: argparse.Namespace) -> CocoFormatSource:
    """The photos of a split. Raises as `CocoFormatSource`, or SourceError for other categories than COCO's."""
    photos, panoptic, instances = open_files(root, f"{split}2017")
    if panoptic is None:
        raise FileNotFoundError(f"{root}/annotations/panoptic_{split}2017.json: not found; copy it there from the release")
    if args.with_instances and instances is None:
        raise FileNotFoundError(f"{root}/annotations/instances_{split}2017.json: not found; copy it there, or leave --with-instances out")
    instances = instances if args.with_instances else None
    entries, where = common_categories(panoptic, instances)
    entries = in_published_order(entries, read_class_names("verbatim/coco_panoptic133"), where)
    extra = {"counted_as_base": list(COUNTED_AS_BASE)}
    categories = select_categories(entries, NOVEL, args.classes, "COCO panoptic, 133 classes", extra)
    return CocoFormatSource(categories, photos, panoptic, instances)
