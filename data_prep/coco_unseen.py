"""COCO-Stuff with the 15 classes that zero-shot papers hold out (SPNet, Xian et al. 2019), as IFSeg evaluates them.

The layout of the files is that of `data_prep/coco_stuff.py`. The classes are numbered in IFSeg's order, that of
`class_names/coco_unseen15.txt`; every other pixel has no label. All photos are kept, also those without a labelled pixel.
"""

import argparse

from data_prep import coco_stuff
from data_prep.coco_stuff import CocoStuffSource, add_arguments, subset_of_classes
from data_prep.paired import read_class_names
from ofaseg.vocabulary import ClassVocabulary

__all__ = ["SPLITS", "add_arguments", "open_split", "vocabulary"]
SPLITS = coco_stuff.SPLITS


def vocabulary() -> ClassVocabulary:
    """The 15 classes."""
    names, things = read_class_names("coco_unseen15"), read_class_names("coco_stuff171")[: coco_stuff.NUM_THINGS]
    return ClassVocabulary(names=names, thing=tuple(name in things for name in names), source="COCO-Stuff, 15 unseen classes")


def open_split(root, split: str, args: argparse.Namespace) -> CocoStuffSource:
    """The photos of a split with the 15 classes. Raises as `coco_stuff.CocoStuffSource`."""
    classes = vocabulary()
    on_bad_sample = getattr(args, "on_bad_sample", "raise")
    return CocoStuffSource(root, split, classes, subset_of_classes(classes.names), args.label_files, on_bad_sample)
