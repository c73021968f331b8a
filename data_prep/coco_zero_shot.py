"""COCO-Stuff as FreeSeg uses it: 171 classes under COCO's own names, 15 of them novel (SPNet's split), for all three tasks.

The photos and pixel maps lie as `data_prep/coco_stuff.py` says. `--classes base` keeps the 156 classes of the training, numbered in
order; `novel` the other 15; with `all`, the novel ones are marked in vocabulary.json.

`--with-segments` adds the segments that FreeSeg learns from; it needs COCO's panoptic file and PNG files as in
`data_prep/coco_panoptic.py`. They are the panoptic segments of the classes kept - the 17 merged kinds of stuff are none of the 171 -
and over them the pixels of each kind of stuff that the pixel map shows and the panoptic file does not list, as one more segment.
`--stuff-segments unlisted` leaves those without an entry, as the published script does with more than one process: their pixels
belong to no segment.
"""

import argparse

import numpy as np

from data_prep.coco_format import KEPT, PanopticFile, open_files
from data_prep.coco_segments import CATEGORY_IDS, Categories, read_segments, segment_entry, select_categories
from data_prep.coco_stuff import NUM_THINGS, UNUSED_IDS, CocoStuffSource
from data_prep.coco_stuff import add_arguments as add_label_arguments
from data_prep.paired import read_class_names
from data_prep.source import SourceError
from ofaseg.vocabulary import IGNORE_INDEX

SPLITS = ("train", "val")
NOVEL = ("cow", "giraffe", "suitcase", "frisbee", "skateboard", "carrot", "scissors", "cardboard", "clouds", "grass")
NOVEL += ("playingfield", "river", "road", "tree", "wall-concrete")
STUFF_SEGMENTS = ("listed", "unlisted")
_PUBLISHED_ID = 1 + 256 + 65536
"""A painted segment's id is the value of its pixels in the pixel map, once in each byte."""


def categories(kept: str) -> Categories:
    """The classes kept; COCO's category id is the value in the pixel maps + 1."""
    values = [value for value in range(182) if value not in UNUSED_IDS]
    names = read_class_names("verbatim/coco_stuff171")
    entries = [{"id": v + 1, "name": name, "isthing": k < NUM_THINGS} for k, (v, name) in enumerate(zip(values, names))]
    return select_categories(entries, NOVEL, kept, "COCO-Stuff, 171 classes, 15 novel")


class CocoZeroShotSource(CocoStuffSource):
    """The photos of one split. Arguments and errors as `CocoStuffSource`.

    Args:
        kept: "all", "base" or "novel" classes.
        panoptic: their segments, None for label maps alone.
        stuff_segments: one of `STUFF_SEGMENTS`.

    Raises:
        SourceError: a photo that the panoptic file does not list.
    """

    def __init__(
        self, root, split, kept, label_files="auto", on_bad_sample="raise", panoptic: PanopticFile = None, stuff_segments="listed"
    ):
        self.categories = categories(kept)
        known = sorted(self.categories.classes)  # category ids in the order of the 171 classes
        classes = [self.categories.classes[category] for category in known]
        classes = np.array([IGNORE_INDEX if k is None else k for k in classes], dtype=np.int32)
        super().__init__(root, split, self.categories.vocabulary, classes, label_files, on_bad_sample)
        self.panoptic, self.stuff_segments = panoptic, stuff_segments
        if panoptic is not None:
            self.columns = ("image", "label_map", "id", "segment_map", "segments")
            self.photos = {photo.file_name.rpartition(".")[0]: photo for photo in panoptic.annotations.photos}
            # the merged kinds of stuff and any other category of the file are left out
            others = {c["id"]: None for c in panoptic.annotations.categories if isinstance(c, dict) and isinstance(c.get("id"), int)}
            self.categories = Categories(self.categories.vocabulary, others | self.categories.classes)

    def __getitem__(self, i: int) -> dict:
        sample = super().__getitem__(i)
        if self.panoptic is None:
            return sample
        photo = self.photos.get(sample["id"])
        if photo is None:
            raise SourceError(
                f"{self.name(i)}: not in the list 'images' of {self.panoptic.annotations.path}; is it the file of this split?"
            )
        where, record = self.panoptic.record(photo)
        path = self.panoptic.path(record)
        segment_map, segments = read_segments(path, record, (photo.height, photo.width), self.categories, where)
        if segment_map.shape != sample["label_map"].shape:
            raise SourceError(f"{path}: another size than the label map of {sample['id']}; pair the files again")
        return sample | self.with_stuff(segment_map, segments, sample["label_map"])

    def with_stuff(self, segment_map: np.ndarray, segments: list[dict], label_map: np.ndarray) -> dict:
        """The columns segment_map and segments after each kind of stuff that no segment has was painted from the label map."""
        vocabulary, present = self.vocabulary, {segment["class_id"] for segment in segments}
        classes, used = {segment["id"]: (segment["class_id"], segment["is_crowd"]) for segment in segments}, set(np.unique(segment_map))
        for k in np.unique(label_map[label_map >= 0]).tolist():
            if vocabulary.thing[k] or k in present:
                continue
            segment_id = 0
            if self.stuff_segments == "listed":
                segment_id = (vocabulary.extra[CATEGORY_IDS][k] - 1) * _PUBLISHED_ID
                while segment_id in used:
                    segment_id += 1
                classes[segment_id] = (k, False)
            segment_map[label_map == k] = segment_id
            used.add(segment_id)
        drawn = set(np.unique(segment_map).tolist())
        listed = [segment_entry(segment_map, number, *about) for number, about in classes.items() if number in drawn]
        return {"segment_map": segment_map, "segments": listed}

    def files(self, i: int) -> tuple[str, ...]:
        found = super().files(i)
        if self.panoptic is None:
            return found
        stem = self.pairs[i].stem if i < len(self.pairs) else ""
        return (*found, str(self.panoptic.folder / f"{stem}.png"), str(self.panoptic.annotations.path))


def add_arguments(parser) -> None:
    """Options of this dataset."""
    add_label_arguments(parser)
    parser.add_argument("--classes", default="all", choices=KEPT, help="classes to keep; what belongs to others has no label")
    parser.add_argument("--with-segments", action="store_true", help="also the segments that FreeSeg learns from")
    parser.add_argument("--stuff-segments", default="listed", choices=STUFF_SEGMENTS, help="whether painted stuff becomes segments")


def open_split(root, split: str, args: argparse.Namespace) -> CocoZeroShotSource:
    """The photos of a split. Raises as `CocoZeroShotSource`."""
    panoptic = None
    if args.with_segments:
        panoptic = open_files(root, f"{split}2017")[1]
        if panoptic is None:
            raise FileNotFoundError(f"{root}/annotations/panoptic_{split}2017.json: not found; copy it there, or leave --with-segments out")
    on_bad_sample = getattr(args, "on_bad_sample", "raise")
    return CocoZeroShotSource(root, split, args.classes, args.label_files, on_bad_sample, panoptic, args.stuff_segments)
