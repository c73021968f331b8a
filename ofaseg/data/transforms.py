"""Sample dict -> sample dict: resizing, cropping, flipping, colour changes, as the official IFSeg pipeline does them.

A sample holds "image", (H, W, 3) uint8 RGB, and maybe "label_map", (H, W) int16 or int32 class ids with `IGNORE_INDEX`; other
keys pass through. Functions return a new dict and leave the arrays of their input alone. Random ones draw from the generator
they are given, in the order of mmsegmentation's transforms (0.28 and 1.2: same numbers in, same pixels out).
"""

import math
from typing import Callable, Optional, Union

import cv2
import numpy as np
import torch
from PIL import Image

from ofaseg.vocabulary import IGNORE_INDEX

PADDING_COLOUR = 128
"""Grey: next to zero after normalisation with mean and standard deviation 0.5."""
_CROP_ATTEMPTS = 10
_CLEARANCE = 1e-4
"""Ten times the rounding error of float32 at 255."""


def resize(sample: dict, height: int, width: int, antialias: bool = False) -> dict:
    """To (height, width): image bilinear, label map nearest (source index floor(i * in / out)).

    With `antialias` a pixel of a smaller image is a mean over all that it stands for, as Pillow resizes.
    """
    if sample["image"].shape[:2] == (height, width):
        return dict(sample)
    if antialias:
        image = np.array(Image.fromarray(sample["image"]).resize((width, height), Image.Resampling.BILINEAR))
    else:
        image = cv2.resize(sample["image"], (width, height), interpolation=cv2.INTER_LINEAR)
    result = sample | {"image": image}
    if "label_map" in sample:
        result["label_map"] = cv2.resize(sample["label_map"], (width, height), interpolation=cv2.INTER_NEAREST)
    return result


def short_side_size(height: int, width: int, short: float, long: float, multiple: int = 1) -> tuple[int, int]:
    """(height, width) scaled, aspect kept, to the largest size with short side <= `short` and long side <= `long`.

    Each side is then rounded to a multiple of `multiple`, at least one, by which it may end up half of that above its bound.
    """
    factor = min(long / max(height, width), short / min(height, width)) / multiple
    return max(1, int(height * factor + 0.5)) * multiple, max(1, int(width * factor + 0.5)) * multiple


def resize_short_side(sample: dict, short: int = 512, long: int = 2048, antialias: bool = False) -> dict:
    """Scales, aspect kept, until the short side is `short` or the long side is `long`, whichever comes first; see `resize`."""
    return resize(sample, *short_side_size(*sample["image"].shape[:2], short, long), antialias)


def random_scale(
    sample: dict,
    rng: np.random.Generator,
    short: int = 512,
    long: int = 2048,
    ratio: tuple[float, float] = (0.5, 2.0),
    min_size: int = 512,
) -> dict:
    """Scales, aspect kept, to (`short`, `long`) times a number drawn from `ratio`; the short side never under `min_size`.

    With `min_size` 0 the scaled pair bounds both sides, as in `resize_short_side`; otherwise only the short side counts.
    """
    return resize(sample, *_random_size(*sample["image"].shape[:2], rng, short, long, ratio, min_size))


def _random_size(
    height: int, width: int, rng: np.random.Generator, short: int, long: int, ratio: tuple[float, float] = (0.5, 2.0), min_size: int = 0
) -> tuple[int, int]:
    factor = rng.random() * (ratio[1] - ratio[0]) + ratio[0]
    bounds = int(long * factor), int(short * factor)
    if min_size:
        short_side = max(min_size, min(bounds))
        return short_side_size(height, width, short_side, short_side * max(height, width) / min(height, width))
    return short_side_size(height, width, min(bounds), max(bounds))


def _resize_corner(image: np.ndarray, height: int, width: int, bottom: int, right: int) -> np.ndarray:
    """`cv2.resize(image, (width, height))[:bottom, :right]`, without computing most of what lies below and to the right of it.

    OpenCV counts coordinates from the upper left and from the ratio of the sizes alone, so a corner of the source does. (A
    part at the left or top would get other rounding errors.)
    """
    scale_y, scale_x = height / image.shape[0], width / image.shape[1]
    rows = min(image.shape[0], math.ceil(bottom / scale_y) + 2)  # a pixel is mixed of two
    columns = min(image.shape[1], math.ceil(right / scale_x) + 2)
    if (round(rows * scale_y), round(columns * scale_x)) == (rows, columns):  # OpenCV copies what keeps its size
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)[:bottom, :right]
    corner = cv2.resize(image[:rows, :columns], None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_LINEAR)
    return corner[:bottom, :right]


def pad(sample: dict, height: int, width: int) -> dict:
    """Extends the right and lower border to at least (height, width): grey pixels without a label."""
    image = sample["image"]
    bottom, right = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if not bottom and not right:
        return dict(sample)
    result = sample | {"image": np.pad(image, ((0, bottom), (0, right), (0, 0)), constant_values=PADDING_COLOUR)}
    if "label_map" in sample:
        result["label_map"] = np.pad(sample["label_map"], ((0, bottom), (0, right)), constant_values=IGNORE_INDEX)
    return result


def random_crop(
    sample: dict, rng: np.random.Generator, size: Union[int, tuple[int, int]], cat_max_ratio: float = 0.75, count_ignored: bool = True
) -> dict:
    """Cuts a square of `size`, or (height, width), at a random place, padding what is smaller.

    While the crop holds a single label, or one label covers `cat_max_ratio` of it or more, another place is drawn, at most
    ten times; 1.0 takes the first. `count_ignored`: pixels without a label count as one more label, as in the official pipeline.
    """
    height, width = (size, size) if isinstance(size, int) else size
    sample = pad(sample, height, width)
    window = _random_window(sample["image"].shape[:2], sample.get("label_map"), rng, (height, width), cat_max_ratio, count_ignored)
    return sample | {name: sample[name][window] for name in ("image", "label_map") if name in sample}


def _random_window(
    shape: tuple[int, int],
    label_map: Optional[np.ndarray],
    rng: np.random.Generator,
    size: tuple[int, int],
    cat_max_ratio: float,
    count_ignored: bool = True,
) -> tuple[slice, slice]:
    """Rows and columns of a crop of `size` out of an image of `shape`, by the rule of `random_crop`."""

    def draw() -> tuple[slice, slice]:
        top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(shape, size))
        return slice(top, top + size[0]), slice(left, left + size[1])

    window = draw()
    if cat_max_ratio < 1.0 and label_map is not None:
        for _ in range(_CROP_ATTEMPTS):
            if _is_varied(label_map[window], cat_max_ratio, count_ignored):
                break
            window = draw()
    return window


def _is_varied(label_map: np.ndarray, cat_max_ratio: float, count_ignored: bool) -> bool:
    if count_ignored:
        # most crops are decided by the pixels of one frequent label: it covers too much, or leaves too little to any other
        size, count = label_map.size, np.count_nonzero(label_map == _frequent_label(label_map))
        if count / size >= cat_max_ratio:
            return False
        if (size - count) / size < cat_max_ratio:
            return True
    kind, bins = (np.uint8, 256) if label_map.max() < 255 else (np.uint16, 65536)
    labels = label_map.astype(kind)  # no label becomes the highest value
    counts = cv2.calcHist([labels], [0], None, [bins], [0, bins]).ravel()
    counts = counts if count_ignored else counts[:-1]
    return np.count_nonzero(counts) > 1 and float(counts.max()) / float(counts.sum()) < cat_max_ratio


def _frequent_label(label_map: np.ndarray) -> int:
    """The most frequent label among a few dozen spread pixels."""
    height, width = label_map.shape
    labels = label_map[:: height // 8 + 1, :: width // 8 + 1].ravel().astype(np.int64)
    return int(np.bincount(labels - IGNORE_INDEX).argmax()) + IGNORE_INDEX


def random_flip(sample: dict, rng: np.random.Generator, probability: float = 0.5) -> dict:
    """Mirrors left and right with `probability`."""
    if rng.random() >= probability:
        return dict(sample)
    return sample | {name: cv2.flip(sample[name], 1) for name in ("image", "label_map") if name in sample}


def photometric_distortion(
    sample: dict,
    rng: np.random.Generator,
    brightness: float = 32.0,
    contrast: tuple[float, float] = (0.5, 1.5),
    saturation: tuple[float, float] = (0.5, 1.5),
    hue: int = 18,
) -> dict:
    """Changes brightness (+-, 0..255 scale), contrast and saturation (factors) and hue (+- of 180), each every other time.

    A coin decides whether contrast comes before or after saturation and hue.
    """
    image = sample["image"]
    if rng.integers(2):
        image = _brighten(image, rng.uniform(-brightness, brightness))
    contrast_first = rng.integers(2) == 1
    if contrast_first and rng.integers(2):
        image = _multiply(image, rng.uniform(*contrast))
    if rng.integers(2):
        factor = rng.uniform(*saturation)
        image = _change_hsv(image, 1, lambda values: _multiply(values, factor))
    if rng.integers(2):
        table = ((np.arange(256) + int(rng.integers(-hue, hue))) % 180).astype(np.uint8)
        image = _change_hsv(image, 0, lambda values: cv2.LUT(values, table))
    if not contrast_first and rng.integers(2):
        image = _multiply(image, rng.uniform(*contrast))
    return sample | {"image": image}


def _brighten(image: np.ndarray, offset: float) -> np.ndarray:
    """clip(value + offset, 0, 255) of a uint8 array, truncated."""
    if not _is_clear(np.array([offset])):
        return cv2.LUT(image, _affine_table(1.0, offset))
    shift = math.floor(offset)
    return cv2.add(image, (shift, shift, shift, 0))


def _multiply(image: np.ndarray, factor: float) -> np.ndarray:
    """clip(value * factor, 0, 255) of a uint8 array, truncated; `factor` must not be negative."""
    if not _is_clear(np.arange(256) * factor):
        return cv2.LUT(image, _affine_table(factor, 0.0))
    return cv2.convertScaleAbs(image, alpha=factor, beta=_CLEARANCE - 0.5)  # it rounds; so much less than half truncates


def _is_clear(values: np.ndarray) -> bool:
    """Whether no value lies so little below a whole number that float32 arithmetic could take it for that number."""
    return bool((values % 1.0).max() < 1.0 - 2 * _CLEARANCE)


def _affine_table(factor: float, offset: float) -> np.ndarray:
    """(256,) uint8: clip(value * factor + offset) of every uint8 value, in float32 and truncated; right for any numbers, if slower."""
    values = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(values, 0, 255).astype(np.uint8)


def _change_hsv(image: np.ndarray, channel: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Replaces one channel (0 hue, 1 saturation) of the image's HSV form by `change` of it."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(change(cv2.extractChannel(hsv, channel)), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def random_scale_crop_flip(
    sample: dict, rng: np.random.Generator, size: int = 512, long: int = 2048, cat_max_ratio: float = 0.75, distort: bool = True
) -> dict:
    """The official training pipeline for square crops of `size`: resize, crop, flip, colour (`distort`)."""
    sample = random_flip(random_scale_crop(sample, rng, size, long, cat_max_ratio), rng)
    return photometric_distortion(sample, rng) if distort else sample


def random_scale_crop(sample: dict, rng: np.random.Generator, size: int = 512, long: int = 2048, cat_max_ratio: float = 0.75) -> dict:
    """`random_scale` to at least `size`, then `random_crop` of a square of `size`: the same pixels from the same numbers.

    The crop is chosen from the label map first, so that the photo is resized no further than the crop reaches.
    """
    image, label_map = sample["image"], sample.get("label_map")
    height, width = _random_size(*image.shape[:2], rng, short=size, long=long, min_size=size)
    if label_map is not None:
        label_map = cv2.resize(label_map, (width, height), interpolation=cv2.INTER_NEAREST)
    window = _random_window((height, width), label_map, rng, (size, size), cat_max_ratio)
    sample = sample | {"image": _resize_corner(image, height, width, window[0].stop, window[1].stop)[window]}
    if label_map is not None:
        sample["label_map"] = label_map[window]
    return sample


def to_tensors(sample: dict) -> dict:
    """image -> uint8 (3, H, W) RGB, label_map -> (H, W) of its own integer type; contiguous copies.

    A batch travels to the device as it is: 16-bit class ids are a quarter of the bytes that long ones have.
    """
    # PyTorch aligns memory to 64 bytes; into that of NumPy, which does not, splitting takes up to five times as long
    planes = torch.empty((3, *sample["image"].shape[:2]), dtype=torch.uint8)
    cv2.split(sample["image"], list(planes.numpy()))
    result = sample | {"image": planes}
    if "label_map" in sample:
        result["label_map"] = torch.from_numpy(np.ascontiguousarray(sample["label_map"]))
    return result
