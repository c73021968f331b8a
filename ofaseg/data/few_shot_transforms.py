"""Augmentation of few-shot and zero-shot segmentation as Fusioner's code does it with albumentations 1.1.

Functions are as those of `transforms`: a sample dict with "image", (H, W, 3) uint8 RGB, and "label_map", (H, W) int16 class ids, in and
out; random ones draw from the generator that they are given. Images are interpolated bilinearly, label maps by the nearest
pixel. Mean and standard deviation (`STATISTICS`) come in on the device.
"""

import math
from dataclasses import dataclass
from typing import Optional

import cv2
import numpy as np

from ofaseg.data.image_text_transforms import crop_window
from ofaseg.data.transforms import random_flip, resize
from ofaseg.vocabulary import IGNORE_INDEX

STATISTICS = {
    "pascal5i": ((0.4554, 0.4298, 0.3955), (0.1181, 0.1189, 0.1338)),
    "coco20i": ((0.4650, 0.4357, 0.3973), (0.1152, 0.1153, 0.1352)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation of RGB values 0..1: what the published code normalises each benchmark by, and what CLIP was trained with."""
NO_CLASS = -2
"""Label of pixels that warping uncovers, where they count as none of the classes; it is no class id, so that class 0 may be one."""
_HUES = 180

# ---- geometry ----


def random_resized_crop(sample: dict, rng: np.random.Generator, size: int, scale: tuple[float, float] = (0.5, 1.0)) -> dict:
    """A random window (`crop_window`: share of the area in `scale`, width / height in 3/4..4/3) resized to `size` x `size`."""
    top, left, height, width = crop_window(*sample["image"].shape[:2], rng, scale)
    window = (slice(top, top + height), slice(left, left + width))
    return resize(sample | {name: np.ascontiguousarray(sample[name][window]) for name in ("image", "label_map")}, size, size)


def short_side_crop(sample: dict, rng: np.random.Generator, size: int) -> dict:
    """Short side to `size`, aspect kept, then a `size` x `size` window; its offset is floor(u * free pixels), u uniform in 0..1."""
    height, width = sample["image"].shape[:2]
    factor = size / min(height, width)
    sample = resize(sample, round(height * factor), round(width * factor))
    free = [length - size for length in sample["image"].shape[:2]]
    top, left = (int(length * rng.random()) for length in free)
    return sample | {name: sample[name][top : top + size, left : left + size] for name in ("image", "label_map")}


def warp(sample: dict, matrix: np.ndarray, border_label: int = NO_CLASS) -> dict:
    """Moves pixel (x, y) to `matrix` (2, 3) times (x, y, 1), size kept; uncovered pixels are black and get `border_label`."""
    size = sample["image"].shape[1::-1]
    image = cv2.warpAffine(sample["image"], matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    labels = cv2.warpAffine(
        sample["label_map"], matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=border_label
    )
    return sample | {"image": image, "label_map": labels}


def random_affine(sample: dict, rng: np.random.Generator, jitter: float = 20.0, border_label: int = NO_CLASS) -> dict:
    """Three corners of a centred square, a third of the short side away from the middle, each moved by uniform +-`jitter` pixels.

    It is the affine part of an elastic transform with alpha 1 and sigma 50. The displacement field of that is left out: it moves
    pixels by less than a sixty-fourth of their size, which changes no value but at the outermost ones.
    """
    height, width = sample["image"].shape[:2]
    middle, reach = np.float32((height, width)) // 2, min(height, width) // 3
    corners = np.float32([middle + reach, [middle[0] + reach, middle[1] - reach], middle - reach])
    moved = corners + rng.uniform(-jitter, jitter, corners.shape).astype(np.float32)
    return warp(sample, cv2.getAffineTransform(corners, moved), border_label)


def shift_scale_rotate(
    sample: dict,
    rng: np.random.Generator,
    degrees: float,
    shift: float = 0.1,
    scale: tuple[float, float] = (0.9, 1.1),
    border_label: int = NO_CLASS,
) -> dict:
    """Turns by uniform +-`degrees` and scales by a factor in `scale` about the middle, then shifts by +-`shift` of width and height."""
    height, width = sample["image"].shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-degrees, degrees), rng.uniform(*scale))
    matrix[:, 2] += rng.uniform(-shift, shift, 2) * (width, height)
    return warp(sample, matrix, border_label)


# ---- colour ----


def colour_jitter(sample: dict, rng: np.random.Generator, strength: float) -> dict:
    """Brightness, contrast and saturation by factors in 1 +- `strength`, hue by +- `strength` of the circle, in random order."""
    factors = [rng.uniform(max(0.0, 1 - strength), 1 + strength) for _ in range(3)] + [rng.uniform(-strength, strength)]
    image = sample["image"]
    for k in rng.permutation(4):
        image = (brightness, contrast, saturation, hue)[k](image, factors[k])
    return sample | {"image": image}


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Values times `factor`, cut at 255 and truncated."""
    return cv2.LUT(image, _truncated(np.arange(256) * factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` times the image plus 1 - `factor` times the mean of its grey values, truncated."""
    mean = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()
    return cv2.LUT(image, _truncated(np.arange(256) * factor + mean * (1 - factor)))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` times the image plus 1 - `factor` times its grey values, rounded."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Hue moved by `turn` of the circle, in steps of 2 degrees."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    table = np.mod(np.arange(256) + _HUES * turn, _HUES).astype(np.uint8)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), table), hsv, 0)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def gauss_noise(sample: dict, rng: np.random.Generator, variance: tuple[float, float] = (10.0, 50.0)) -> dict:
    """Adds to every channel of every pixel normal noise of mean 0 whose variance (0..255 scale) is uniform in `variance`; truncated."""
    sigma = math.sqrt(rng.uniform(*variance))
    noise = rng.standard_normal(sample["image"].shape, dtype=np.float32) * np.float32(sigma)
    return sample | {"image": _truncated(sample["image"] + noise)}


def _truncated(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


# ---- pipelines; objects, so that data workers can be sent them ----


@dataclass(frozen=True)
class FewShotTraining:
    """Fusioner's training pipeline: one of two crops to `size` x `size`, then with `probability` a chain of five steps, each by a coin.

    The steps are colour jitter, noise, mirroring, `random_affine` and `shift_scale_rotate`.

    Attributes:
        probability: of the chain, and of the resized crop as against the crop of the resized photo; 0 leaves the latter alone.
        scale: share of the area of the resized crop.
        colour: strength of the colour jitter: 0.5 on PASCAL-5i, 0.2 on COCO-20i.
        degrees: largest rotation: 20 on PASCAL-5i, 10 on COCO-20i.
        ignore_borders: uncovered borders have no label; otherwise they are none of the classes, as in the published code.
    """

    size: int = 224
    probability: float = 0.5
    scale: tuple[float, float] = (0.5, 1.0)
    colour: float = 0.5
    degrees: float = 20.0
    ignore_borders: bool = False

    @classmethod
    def of_benchmark(cls, benchmark: str, **changes) -> "FewShotTraining":
        """With the strengths of a benchmark: those of COCO-20i for "coco20i", else those of PASCAL-5i."""
        return cls(**({"colour": 0.2, "degrees": 10.0} if benchmark == "coco20i" else {}) | changes)

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        if rng.random() < self.probability:
            sample = random_resized_crop(sample, rng, self.size, self.scale)
        else:
            sample = short_side_crop(sample, rng, self.size)
        if rng.random() >= self.probability:
            return sample
        border = IGNORE_INDEX if self.ignore_borders else NO_CLASS
        if rng.random() < 0.5:
            sample = colour_jitter(sample, rng, self.colour)
        if rng.random() < 0.5:
            sample = gauss_noise(sample, rng)
        sample = random_flip(sample, rng, 0.5)
        if rng.random() < 0.5:
            sample = random_affine(sample, rng, border_label=border)
        if rng.random() < 0.5:
            sample = shift_scale_rotate(sample, rng, self.degrees, border_label=border)
        return sample


@dataclass(frozen=True)
class FewShotEvaluation:
    """The test pipeline: to `size` x `size`, aspect not kept, by area averages; or the photo as it is, for sliding windows.

    Attributes:
        size: 224 in Fusioner's tests, 480 in LSeg's; None for the original resolution (`--test-with-org-resolution`).
    """

    size: Optional[int] = 224

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        if self.size is None:
            return dict(sample)
        size = (self.size, self.size)
        image = cv2.resize(sample["image"], size, interpolation=cv2.INTER_AREA)
        return sample | {"image": image, "label_map": cv2.resize(sample["label_map"], size, interpolation=cv2.INTER_NEAREST)}

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a photo after the transform: the `batch_size_key` of the dataset."""
        return (height, width) if self.size is None else (self.size, self.size)
