"""ADE20K, SceneParse150, with objects: 100 things and 50 kinds of stuff, 15 of the classes novel, as FreeSeg uses it.

    ROOT/images/{training,validation}/<stem>.jpg
    ROOT/annotations/{training,validation}/<stem>.png           as `data_prep/ade20k.py` says
    ROOT/annotations_instance/{training,validation}/<stem>.png  RGB: red is the thing's number 1..100 in the order of the classes,
                                                                green the number of the object in the photo, 0 = none

Each kind of stuff of a photo is a segment, and over them each object; objects are also written as `instances`. `--classes base` keeps
the 135 classes of the training, numbered in order; what belongs to others has no label. The names are those of Mask2Former's list.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.ade20k import SPLITS, Ade20kSource
from data_prep.coco_format import KEPT
from data_prep.coco_segments import segment_entry, select_categories
from data_prep.paired import find_folder, read_class_names
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.utils.run_lengths import text_of_mask
from ofaseg.vocabulary import IGNORE_INDEX

__all__ = ["SPLITS", "add_arguments", "open_split"]
STUFF = (0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79, 84, 91, 94)
STUFF += (96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145)
"""Class ids 0..149 of the kinds of stuff."""
NOVEL = (9, 15, 30, 37, 49, 60, 74, 81, 89, 99, 112, 128, 136, 143, 149)
THINGS = tuple(k for k in range(150) if k not in STUFF)


def categories(kept: str):
    """The classes kept; a class's number in the COCO-format files of the published code is its id 0..149."""
    names = read_class_names("verbatim/ade150")
    entries = [{"id": k, "name": name, "isthing": k in THINGS} for k, name in enumerate(names)]
    return select_categories(entries, [names[k] for k in NOVEL], kept, "ADE20K, 150 classes, 15 novel")


class Ade20kPanopticSource(Ade20kSource):
    """The photos of one split with segments and objects. Arguments and errors as `Ade20kSource`."""

    columns = ("image", "label_map", "id", "segment_map", "segments", "instances")

    def __init__(self, root, split: str, kept: str = "all", on_bad_sample: str = "raise"):
        super().__init__(root, split, on_bad_sample=on_bad_sample)
        names = {"train": ("training", "train"), "val": ("validation", "val")}[split]
        self.objects = find_folder(root, [f"annotations_instance/{name}" for name in names], "object maps")
        found = categories(kept)
        self.vocabulary = found.vocabulary
        self.class_of = np.array([IGNORE_INDEX if found.classes[k] is None else found.classes[k] for k in range(150)], dtype=np.int32)
        is_class = self.table >= 0
        self.table[is_class] = self.class_of[self.table[is_class]]

    def __getitem__(self, i: int) -> dict:
        sample = super().__getitem__(i)
        path = self.objects / f"{sample['id']}.png"
        thing_map, object_map = read_objects(path, sample["label_map"].shape)
        return sample | self.segments(sample["label_map"], thing_map, object_map, path)

    def segments(self, label_map: np.ndarray, thing_map: np.ndarray, object_map: np.ndarray, path: Path) -> dict:
        """The columns segment_map, segments and instances; ids count from 1, stuff first."""
        segment_map, about = np.zeros(label_map.shape, dtype=np.int32), {}
        for k in np.unique(label_map[label_map >= 0]).tolist():
            if not self.vocabulary.thing[k]:
                about[len(about) + 1] = k
                segment_map[label_map == k] = len(about)
        instances = []
        for number in np.unique(object_map[object_map > 0]).tolist():
            mask = object_map == number
            kinds = np.unique(thing_map[mask]).tolist()
            if len(kinds) != 1 or not 1 <= kinds[0] <= len(THINGS):
                raise SourceError(
                    f"{path}: object {number} has the thing numbers {kinds}, expected one of 1..{len(THINGS)}; correct the file"
                )
            k = int(self.class_of[THINGS[kinds[0] - 1]])
            if k == IGNORE_INDEX:
                continue
            about[len(about) + 1] = k
            segment_map[mask] = len(about)
            instances.append(segment_entry(mask, True, k, False) | {"id": len(about), "mask": text_of_mask(mask)})
        drawn = set(np.unique(segment_map).tolist())
        listed = [segment_entry(segment_map, number, k, False) for number, k in about.items() if number in drawn]
        return {"segment_map": segment_map, "segments": listed, "instances": instances}

    def files(self, i: int) -> tuple[str, ...]:
        found = super().files(i)
        return (*found, str(self.objects / f"{self.pairs[i].stem}.png")) if i < len(self.pairs) else found


def read_objects(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) thing numbers 1..100 and (H, W) object numbers of a photo, 0 = none.

    Raises:
        FileNotFoundError: there is no such file.
        SourceError: damaged, another size, or not RGB.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: object map not found; copy annotations_instance of the release there")
    try:
        with Image.open(path) as image:
            mode = image.mode
        if mode != "RGB":
            raise SourceError(f"{path}: {mode} instead of an RGB PNG; copy it again from annotations_instance of the release")
        pixels = codec.decode_image(path.read_bytes(), str(path))
    except (OSError, SyntaxError, codec.CodecError) as error:
        raise SourceError(f"{path}: cannot be read ({error}); copy it again from the release") from error
    if pixels.shape[:2] != size:
        raise SourceError(f"{path}: {pixels.shape[:2]} (height, width), the label map has {size}; pair the files again")
    return pixels[..., 0].astype(np.int32), pixels[..., 1].astype(np.int32)


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--classes", default="all", choices=KEPT, help="classes to keep; what belongs to others has no label")


def open_split(root, split: str, args: argparse.Namespace) -> Ade20kPanopticSource:
    """The photos of a split. Raises as `Ade20kPanopticSource`."""
    return Ade20kPanopticSource(root, split, args.classes, getattr(args, "on_bad_sample", "raise"))
