"""Regions of shards with boxes, as photos with captions: what contrastive models learn single things and their names from.

    ROOT/<split>-00000-of-00004.parquet (or .tsv), vocabulary.json      shards with the column boxes

A row becomes one row for each of its boxes: the part of the photo inside, and the text of the box as its caption. Boxes smaller than
`--min-side` pixels are left out. No label map is read.
"""

import argparse
import math

import numpy as np

from data_prep.source import Source, SourceError
from ofaseg.data import codec
from ofaseg.data.shards import ShardError, ShardReader
from ofaseg.data.shards import list_splits as splits_in_folder


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--min-side", type=int, default=8, help="shortest side of a region in pixels (default %(default)s)")
    parser.add_argument("--context", type=float, default=0.0, help="how much wider boxes are cut on every side, as a share of their sides")


def list_splits(root, args: argparse.Namespace) -> list[str]:
    """The splits in the folder. Raises FileNotFoundError without any."""
    splits = list(splits_in_folder(root))
    if not splits:
        raise FileNotFoundError(f"{root}: no shards; give a folder that data_prep/prepare.py wrote")
    return splits


class RegionSource(Source):
    """The regions of a split, in the order of rows and boxes.

    Args:
        root: folder of shards with the columns image, id and boxes.
        min_side: boxes with a shorter side, in pixels, are left out.
        context: share of its sides that a box is widened by, on every side, 0 or more; it never leaves the photo.

    Raises:
        ShardError: the shards cannot be read.
        SourceError: no column of boxes, or an option out of its range.
    """

    columns = ("image", "id", "captions")

    def __init__(self, root, split: str, min_side: int, context: float):
        if min_side < 1 or not 0 <= context < math.inf:
            raise SourceError(f"--min-side {min_side} --context {context}: give at least 1 pixel, and a context of at least 0")
        self.reader = ShardReader.for_split(root, split)
        if "boxes" not in self.reader.columns:
            have = ", ".join(self.reader.columns)
            raise SourceError(f"{self.reader.paths[0]}: no column boxes, only {have}; regions are cut out of shards that have boxes")
        self.context = context
        self.places = []
        for i in range(len(self.reader)):
            boxes = self.reader.read(i, ("boxes",))["boxes"]
            wide = [k for k, box in enumerate(boxes) if min(_sides(box["box"])) >= min_side and box["text"].strip()]
            self.places += [(i, k) for k in wide]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> dict:
        """Raises SourceError for a row that cannot be read, or a box outside its photo."""
        row_number, number = self.places[i]
        where = self.reader.location(row_number, "image")
        try:
            row = self.reader.read(row_number, ("image", "id", "boxes"))
            image = codec.decode_image(row["image"], where)
        except (ShardError, codec.CodecError) as error:
            raise SourceError(str(error)) from error
        box = row["boxes"][number]
        region = cut(image, box["box"], self.context)
        if not region.size:
            height, width = image.shape[:2]
            where = self.reader.location(row_number, "boxes")
            raise SourceError(f"{where}: box {box['box']} lies outside the photo of {width}x{height} pixels")
        return {"image": region, "id": f"{row['id']}-{number}", "captions": [box["text"]]}

    def name(self, i: int) -> str:
        return f"{self.reader.location(self.places[i][0])}, box {self.places[i][1]}"

    def files(self, i: int) -> tuple[str, ...]:
        return (self.reader.locate(self.places[i][0])[0],)


def _sides(box) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


def cut(image: np.ndarray, box, context: float) -> np.ndarray:
    """The part (h, w, 3) of an image (H, W, 3) in a box [x0, y0, x1, y1] of pixels, end exclusive, widened by `context` of its sides."""
    wide, high = (context * side for side in _sides(box))
    left, top = max(0, math.floor(box[0] - wide)), max(0, math.floor(box[1] - high))
    return image[top : max(0, math.ceil(box[3] + high)), left : max(0, math.ceil(box[2] + wide))]


def open_split(root, split: str, args: argparse.Namespace) -> RegionSource:
    """The regions of a split. Raises as `RegionSource`."""
    return RegionSource(root, split, args.min_side, args.context)
