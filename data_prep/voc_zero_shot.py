"""PASCAL VOC 2012 with 15 base and 5 novel classes (SPNet's split), as FreeSeg, ZegFormer and others use it.

The files lie as `data_prep/pascal_voc.py` says; train_aug is the training split of published runs, val that of their scores. The 20
classes are numbered from 0 under the release's own names, background and borders have no label. `--classes base` keeps the first 15
for training, `novel` the last five; with `all`, the novel ones are marked in vocabulary.json.
"""

import argparse

import numpy as np

from data_prep.coco_format import KEPT
from data_prep.paired import UNKNOWN, read_class_names
from data_prep.pascal_voc import SPLITS, PascalVocSource, list_splits
from data_prep.source import SourceError
from data_prep.voc_layout import voc_colours
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

__all__ = ["SPLITS", "add_arguments", "list_splits", "open_split", "vocabulary"]
NOVEL = ("pottedplant", "sheep", "sofa", "train", "tvmonitor")


def vocabulary(kept: str = "all") -> ClassVocabulary:
    """The 20 classes, or those kept, with the colours of the devkit."""
    names = read_class_names("verbatim/voc20")
    chosen = [k for k, name in enumerate(names) if kept == "all" or (name in NOVEL) == (kept == "novel")]
    if not chosen:
        raise SourceError(f"no {kept} class of VOC; keep all, base or novel ones")
    colours = voc_colours(len(names) + 1)
    return ClassVocabulary(
        names=tuple(names[k] for k in chosen),
        thing=(True,) * len(chosen),
        novel=tuple(names[k] in NOVEL for k in chosen),
        palette=tuple(colours[k + 1] for k in chosen),
        source="PASCAL VOC 2012, 20 classes, 5 novel" + ("" if kept == "all" else f", {kept} classes"),
    )


class VocZeroShotSource(PascalVocSource):
    """The photos of one split with the classes kept. Arguments and errors as `PascalVocSource`."""

    def __init__(self, root, split: str, kept: str = "all", on_bad_sample: str = "raise"):
        super().__init__(root, split, background=False, on_bad_sample=on_bad_sample)
        self.vocabulary = vocabulary(kept)
        names = read_class_names("verbatim/voc20")
        classes = [self.vocabulary.names.index(name) if name in self.vocabulary.names else IGNORE_INDEX for name in names]
        is_class = (self.table != UNKNOWN) & (self.table != IGNORE_INDEX)
        self.table[is_class] = np.array(classes, dtype=np.int32)[self.table[is_class]]


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--classes", default="all", choices=KEPT, help="classes to keep; what belongs to others has no label")


def open_split(root, split: str, args: argparse.Namespace) -> VocZeroShotSource:
    """The photos of a split. Raises as `PascalVocSource`."""
    return VocZeroShotSource(root, split, args.classes, getattr(args, "on_bad_sample", "raise"))
