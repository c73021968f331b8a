"""What rows hold, counted while they are written: pixels and images of each class, sizes."""

import collections
from typing import Optional

import numpy as np

from ofaseg.vocabulary import IGNORE_INDEX


class Statistics:
    """Counts over rows; those of several shards add up to those of all their rows.

    Attributes:
        rows: number of rows.
        unlabelled_rows: rows without a label map.
        pixels: (K + 1,) int64, labelled pixels of each class, last those without a label.
        images: (K,) int64, number of images that show the class.
        sizes: (height, width) in pixels -> number of images.
    """

    def __init__(self, num_classes: int):
        self.rows = 0
        self.unlabelled_rows = 0
        self.pixels = np.zeros(num_classes + 1, dtype=np.int64)
        self.images = np.zeros(num_classes, dtype=np.int64)
        self.sizes: collections.Counter[tuple[int, int]] = collections.Counter()

    def add(self, size: tuple[int, int], label_map: Optional[np.ndarray]) -> None:
        """Counts one row: (height, width) of its photo and its (H, W) label map with `IGNORE_INDEX`, None without one."""
        self.rows += 1
        self.sizes[size] += 1
        if label_map is None:
            self.unlabelled_rows += 1
            return
        unlabelled = len(self.images)
        counts = np.bincount(np.where(label_map == IGNORE_INDEX, unlabelled, label_map).ravel(), minlength=len(self.pixels))
        self.pixels += counts
        self.images += counts[:-1] > 0

    def merge(self, other: "Statistics") -> None:
        """Adds the counts of other rows."""
        self.rows += other.rows
        self.unlabelled_rows += other.unlabelled_rows
        self.pixels += other.pixels
        self.images += other.images
        self.sizes.update(other.sizes)

    def to_json(self) -> dict:
        """A JSON-ready dict; `from_json` reads it back."""
        return {
            "rows": self.rows,
            "unlabelled_rows": self.unlabelled_rows,
            "pixels": self.pixels.tolist(),
            "images": self.images.tolist(),
            "sizes": [[*size, count] for size, count in sorted(self.sizes.items())],
        }

    @classmethod
    def from_json(cls, data: dict) -> "Statistics":
        """Inverse of `to_json`."""
        result = cls(len(data["images"]))
        result.rows, result.unlabelled_rows = data["rows"], data["unlabelled_rows"]
        result.pixels, result.images = np.array(data["pixels"], dtype=np.int64), np.array(data["images"], dtype=np.int64)
        result.sizes.update({(height, width): count for height, width, count in data["sizes"]})
        return result
