"""Mosaics of four photos of FSS-1000, each of another class: whether a class is found, not just whatever object there is.

The files lie as `data_prep/fss1000.py` says. Fusioner's paper tests on such pictures, Mosaic-4, but neither they nor how they are made
are published. Here photo i of a split is drawn from (seed, split, i): four different classes of the split, a photo of each, resized to
`--side` pixels and laid in two rows of two. There are as many as the split has photos, or `--num`.
"""

import argparse

import cv2
import numpy as np

from data_prep import fss1000
from data_prep.source import Source, SourceError
from ofaseg.data import codec

SPLITS = fss1000.SPLITS
TILES = 4


def add_arguments(parser) -> None:
    """Options of this dataset."""
    fss1000.add_arguments(parser)
    parser.add_argument("--num", type=int, default=0, help="mosaics per split (default: as many as the split has photos)")
    parser.add_argument("--side", type=int, default=224, help="height and width of each of the four parts in pixels (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default 1)")


class MosaicSource(Source):
    """The mosaics of one split.

    Args:
        photos: photos of FSS-1000 with label maps of one class each.
        split: of `SPLITS`.
        num: how many, 0 for as many as there are photos.
        side: of a part in pixels; a mosaic has twice as many.
        seed: of the draw.

    Raises:
        SourceError: fewer than four classes, or a number out of its range.
    """

    def __init__(self, photos: fss1000.Fss1000Source, split: str, num: int, side: int, seed: int):
        if num < 0 or side < 1:
            raise SourceError(f"--num {num} --side {side}: give 0 or more mosaics, and a side of at least 1 pixel")
        self.photos, self.vocabulary, self.side = photos, photos.vocabulary, side
        self.num = num or len(photos)
        self.stream = (seed, SPLITS.index(split))
        self.by_class: dict[str, list[int]] = {}
        for i, pair in enumerate(photos.pairs):
            self.by_class.setdefault(pair.stem.split("/")[0], []).append(i)
        if len(self.by_class) < TILES:
            raise SourceError(f"split {split} has {len(self.by_class)} classes; a mosaic needs {TILES}")

    def __len__(self) -> int:
        return self.num

    def parts(self, i: int) -> list[int]:
        """Numbers of the four photos of mosaic `i`: top left, top right, bottom left, bottom right."""
        rng = np.random.default_rng((*self.stream, i))
        names = sorted(self.by_class)
        return [int(rng.choice(self.by_class[names[k]])) for k in rng.permutation(len(names))[:TILES]]

    def __getitem__(self, i: int) -> dict:
        """Raises FileNotFoundError or SourceError for a missing, damaged or unusable file, or a mask of another size than its photo."""
        images, maps = [], []
        for k in self.parts(i):
            sample, where = self.photos[k], self.photos.name(k)
            try:
                image = codec.decode_image(sample["image"], where)
            except codec.CodecError as error:
                raise SourceError(str(error)) from error
            if sample["label_map"].shape != image.shape[:2]:
                sizes = f"{sample['label_map'].shape}, the photo {image.shape[:2]} (height, width)"
                raise SourceError(f"{where}: the mask is {sizes}; copy both again")
            smaller = cv2.INTER_AREA if min(image.shape[:2]) > self.side else cv2.INTER_LINEAR
            images.append(cv2.resize(image, (self.side, self.side), interpolation=smaller))
            maps.append(cv2.resize(sample["label_map"], (self.side, self.side), interpolation=cv2.INTER_NEAREST))
        return {"id": f"mosaic-{i}", "image": two_by_two(images), "label_map": two_by_two(maps)}

    def name(self, i: int) -> str:
        return "mosaic of " + ", ".join(self.photos.name(k) for k in self.parts(i))

    def files(self, i: int) -> tuple[str, ...]:
        return tuple(file for k in self.parts(i) for file in self.photos.files(k))


def two_by_two(parts: list[np.ndarray]) -> np.ndarray:
    """Four arrays (side, side, ...) in two rows of two."""
    return np.concatenate([np.concatenate(parts[:2], axis=1), np.concatenate(parts[2:], axis=1)])


def open_split(root, split: str, args: argparse.Namespace) -> MosaicSource:
    """The mosaics of a split. Raises as `MosaicSource` and `fss1000.Fss1000Source`."""
    photos = fss1000.Fss1000Source(root, split, args.lists, args.natural_names)
    return MosaicSource(photos, split, args.num, args.side, args.seed)
