"""Regions cut out of photos for prompt learning. A sample holds "image", (H, W, 3) uint8, and "label_map", (H, W) uint8: 1 in the region.

The ways that FreeSeg's published code cuts and resizes: the tight box, then a random window of it, or all of it.
"""

from dataclasses import dataclass

import numpy as np

from ofaseg.data.image_text_transforms import random_resized_crop, resized
from ofaseg.data.transforms import random_flip

_ATTEMPTS = 10


def cut_box(sample: dict) -> dict:
    """The smallest box around the region, which must have a pixel."""
    rows, columns = (np.flatnonzero(sample["label_map"].any(axis)) for axis in (1, 0))
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return sample | {name: sample[name][part] for name in ("image", "label_map")}


@dataclass(frozen=True)
class RegionTraining:
    """The box, a window of 8 to 100 % of its area and 3:4 to 4:3 in shape resized to `size` (height, width), mirrored or not.

    A window that shows nothing of the region is drawn again, at most ten times; then it is the whole box.
    """

    size: tuple[int, int]

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        box = cut_box(sample)
        for _ in range(_ATTEMPTS):
            found = random_resized_crop(box, rng, self.size, scale=(0.08, 1.0))
            if found["label_map"].any():
                return random_flip(found, rng)
        return random_flip(resized(box, self.size), rng)


@dataclass(frozen=True)
class RegionEvaluation:
    """The whole box, aspect kept, its long side `side`, in the middle of a square; what is added is outside the region."""

    side: int

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        box = cut_box(sample)
        factor = self.side / max(box["label_map"].shape)
        height, width = (max(1, round(length * factor)) for length in box["label_map"].shape)
        fitted = resized(box, (height, width))
        (top, left), (down, right) = ((self.side - height) // 2, (self.side - width) // 2), (self.side - height, self.side - width)
        borders = ((top, down - top), (left, right - left))
        return fitted | {"image": np.pad(fitted["image"], (*borders, (0, 0))), "label_map": np.pad(fitted["label_map"], borders)}
