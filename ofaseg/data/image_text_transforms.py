"""Transforms of image-text training and retrieval, as SimSeg's released pipeline does them with Pillow.

Functions take a sample dict with "image", (H, W, 3) uint8 RGB, and return a new dict; cropping and resizing take its "label_map", (H, W)
integers, along, by nearest neighbours. Random ones draw from the generator they are
given, so the same generator state gives the same pixels. Mean and standard deviation come in on the device.
"""

import math
from dataclasses import dataclass
from typing import Callable, Optional, Union

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (128, 128, 128)
"""Grey where shearing and rotating uncover nothing."""
_CROP_ATTEMPTS = 10


# ---- geometry ----


def square_resize(sample: dict, size: int) -> dict:
    """To `size` x `size`, whatever the aspect: bilinear, antialiased."""
    return resized(sample, (size, size))


def short_side_resize(sample: dict, side: int, multiple: int, longest: int) -> dict:
    """Aspect kept as far as sides of whole multiples allow: bilinear, antialiased.

    The short side becomes about `side` pixels, or the long one `longest` where that is less; both are rounded to `multiple`.
    """
    height, width = sample["image"].shape[:2]
    factor = min(side / min(height, width), longest / max(height, width))
    rows, columns = (max(1, round(length * factor / multiple)) * multiple for length in (height, width))
    return resized(sample, (rows, columns))


def centre_crop(sample: dict, size: int) -> dict:
    """The middle `size` x `size` pixels; an image smaller than that is laid on black."""
    image = sample["image"]
    height, width = image.shape[:2]
    if height < size or width < size:
        down, right = max(0, size - height), max(0, size - width)
        image = np.pad(image, ((down // 2, (down + 1) // 2), (right // 2, (right + 1) // 2), (0, 0)))
        height, width = image.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return sample | {"image": image[top : top + size, left : left + size]}


def crop_window(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float] = (0.6, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random window.

    Its share of the area is uniform in `scale`, the logarithm of its width / height uniform in that of `ratio`. When ten draws do
    not fit into the image, the largest window in the middle whose shape lies in `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    sample: dict,
    rng: np.random.Generator,
    size: Union[int, tuple[int, int]] = 224,
    scale: tuple[float, float] = (0.6, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> dict:
    """A random window (see `crop_window`) resized to a square of `size`, or (height, width): bilinear, antialiased."""
    size = (size, size) if isinstance(size, int) else size
    return resized(sample, size, crop_window(*sample["image"].shape[:2], rng, scale, ratio))


def resized(sample: dict, size: tuple[int, int], window: Optional[tuple[int, int, int, int]] = None) -> dict:
    """To `size` (height, width), or the `window` of `crop_window` to it: bilinear, antialiased."""
    top, left, height, width = window or (0, 0, *sample["image"].shape[:2])
    part = (slice(top, top + height), slice(left, left + width))
    picture = Image.fromarray(np.ascontiguousarray(sample["image"][part])).resize(size[::-1], Image.Resampling.BILINEAR)
    result = sample | {"image": np.array(picture)}
    if "label_map" in sample:
        result["label_map"] = cv2.resize(np.ascontiguousarray(sample["label_map"][part]), size[::-1], interpolation=cv2.INTER_NEAREST)
    return result


# ---- AutoAugment (Cubuk et al. 2019), policy found on ImageNet ----


def _shear_x(picture: Image.Image, slope: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, (1, slope, 0, 0, 1, 0), Image.Resampling.BICUBIC, fillcolor=FILL)


def _rotate(picture: Image.Image, degrees: float) -> Image.Image:
    return picture.rotate(degrees, fillcolor=FILL)  # counter-clockwise, nearest


def _enhancer(kind) -> Callable[[Image.Image, float], Image.Image]:
    return lambda picture, change: kind(picture).enhance(1 + change)


_STEPS = 10
_LINEAR = {"shear_x": (0.0, 0.3), "rotate": (0.0, 30.0), "color": (0.0, 0.9), "contrast": (0.0, 0.9), "sharpness": (0.0, 0.9)}
_LINEAR |= {"posterize": (8.0, 4.0), "solarize": (256.0, 0.0)}
SIGNED = ("shear_x", "color", "contrast", "sharpness")
"""Operations whose magnitude is positive or negative by a coin. The released policy turns counter-clockwise only, so rotate is not."""
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "shear_x": _shear_x,
    "rotate": _rotate,
    "color": _enhancer(ImageEnhance.Color),
    "contrast": _enhancer(ImageEnhance.Contrast),
    "sharpness": _enhancer(ImageEnhance.Sharpness),
    "posterize": lambda picture, bits: ImageOps.posterize(picture, round(bits)),
    "solarize": lambda picture, threshold: ImageOps.solarize(picture, threshold),
    "autocontrast": lambda picture, _: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _: ImageOps.equalize(picture),
    "invert": lambda picture, _: ImageOps.invert(picture),
}

_FIRST_TWENTY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
)
POLICY = (*_FIRST_TWENTY, *(_FIRST_TWENTY[k - 1] for k in (5, 2, 14, 15, 3)))
"""25 pairs of (operation, probability, magnitude 0..9); one pair is drawn per image."""


def magnitude(operation: str, level: int) -> float:
    """What `level` 0..9 means for an operation: slope, degrees, change of a factor, bits, threshold; 0.0 where it has none."""
    low, high = _LINEAR.get(operation, (0.0, 0.0))
    return low + (high - low) * level / (_STEPS - 1)


def autoaugment(sample: dict, rng: np.random.Generator) -> dict:
    """One pair of `POLICY`, each of its two operations with its probability."""
    picture = Image.fromarray(np.ascontiguousarray(sample["image"]))
    for operation, probability, level in POLICY[int(rng.integers(len(POLICY)))]:
        if rng.random() < probability:
            strength = magnitude(operation, level)
            if operation in SIGNED and rng.random() < 0.5:
                strength = -strength
            picture = OPERATIONS[operation](picture, strength)
    return sample | {"image": np.array(picture)}


# ---- pipelines; objects, so that data workers can be sent them ----


@dataclass(frozen=True)
class ImageTextTraining:
    """A random window whose share of the area is in `scale`, as `size` x `size`; then AutoAugment. No mirroring: captions know left."""

    size: int = 224
    scale: tuple[float, float] = (0.6, 1.0)
    autoaugment: bool = True

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        sample = random_resized_crop(sample, rng, self.size, self.scale)
        return autoaugment(sample, rng) if self.autoaugment else sample


@dataclass(frozen=True)
class ImageTextEvaluation:
    """Square resize to `resize`, then the middle `crop` x `crop`; 324 and 288 are those of SimSeg's retrieval numbers."""

    resize: int = 324
    crop: int = 288

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        return centre_crop(square_resize(sample, self.resize), self.crop)
