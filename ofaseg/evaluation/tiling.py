"""Models at more places and sizes of a photo: sliding windows and several scales, averaged on the patch grid of the whole photo.

Functions take the model as a call `predict(image) -> DenseOutput` of photos (B, 3, H, W). Everything it returns is averaged: class
maps and features where windows overlap and over scales, scores of the whole photo over windows and scales.
"""

from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.structures import DenseOutput

Predict = Callable[[Tensor], DenseOutput]


def parse_scales(text) -> tuple[float, ...]:
    """'0.75, 1, 1.25' -> (0.75, 1.0, 1.25); an empty text is (1.0,).

    Raises:
        ValueError: a part is no number above 0.
    """
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    try:
        scales = tuple(float(part) for part in parts) or (1.0,)
    except ValueError as error:
        raise ValueError(f"scales {text!r}: write numbers with commas between them, such as 0.75,1,1.25") from error
    check_scales(scales)
    return scales


def check_scales(scales: Sequence[float]) -> None:
    """Raises ValueError unless there is at least one scale and each is above 0 and finite."""
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise ValueError(f"scales {tuple(scales)}: each has to be a finite number above 0, and at least one is needed")


def tiled(predict: Predict, image: Tensor, cell: int, window: int = 0, stride: int = 0, scales: Sequence[float] = (1.0,)) -> DenseOutput:
    """The output of a model on photos (B, 3, H, W) by windows at several scales, on the grid (ceil(H / cell), ceil(W / cell)).

    Args:
        cell: pixels per patch.
        window: side of the windows in pixels at every scale, a multiple of `cell`; 0 for whole photos.
        stride: pixels between windows, a multiple of `cell` up to `window`; 0 for half a window.
        scales: factors of the photos' size.

    Raises:
        ValueError: window or stride is not such a number.
    """
    if window:
        stride = stride or max(cell, window // 2 // cell * cell)
        check_window(window, stride, cell)

    def at_one_scale(photos: Tensor) -> DenseOutput:
        return slide(predict, photos, cell, window, stride) if window else predict(photos)

    if tuple(scales) == (1.0,):
        return at_one_scale(image)
    return multi_scale(at_one_scale, image, cell, scales)


def check_window(window: int, stride: int, cell: int) -> None:
    """Raises ValueError unless both are multiples of `cell` above 0 and `stride` is no more than `window`."""
    if window <= 0 or stride <= 0 or window % cell or stride % cell or stride > window:
        raise ValueError(
            f"window {window} and window_stride {stride}: both must be multiples of the model's patch of {cell} pixels, and the stride "
            "no more than the window"
        )


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin so that they cover `length`; the last one ends at its end, and one longer than `length` begins at 0."""
    if window >= length:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(k * stride, length - window) for k in range(count)]


def slide(predict: Predict, image: Tensor, cell: int, window: int, stride: int) -> DenseOutput:
    """Windows of (window, window) pixels, cut off where the photo is smaller; sides that `cell` does not divide are resized up."""
    image = resized(image, tuple(-(-side // cell) * cell for side in image.shape[2:]))
    height, width = image.shape[2:]
    places = [(top, left) for top in window_starts(height, window, stride) for left in window_starts(width, window, stride)]
    if len(places) == 1:
        return predict(image)
    total = OutputSum((height // cell, width // cell))
    for top, left in places:
        total.add(predict(image[:, :, top : top + window, left : left + window]), top // cell, left // cell)
    return total.mean()


def multi_scale(predict: Predict, image: Tensor, cell: int, scales: Sequence[float]) -> DenseOutput:
    """The mean over photos resized by each factor, to multiples of `cell`; maps are resized (bilinear) to the grid of factor 1."""
    height, width = image.shape[2:]
    grid = (-(-height // cell), -(-width // cell))
    total = OutputSum(grid)
    for scale in scales:
        size = (height, width) if scale == 1 else tuple(max(1, int(side * scale / cell + 0.5)) * cell for side in (height, width))
        output = predict(resized(image, size))
        features = None if output.features is None else _to_grid(output.features, grid)
        total.add(output._replace(class_logits=_to_grid(output.class_logits, grid), features=features), 0, 0)
    return total.mean()


class OutputSum:
    """Sums of outputs on a grid (h, w), and how many lie on each cell."""

    def __init__(self, grid: tuple[int, int]):
        self.grid, self.parts, self.sums, self.counts = grid, 0, None, None

    def add(self, output: DenseOutput, row: int, column: int) -> None:
        """Adds maps (B, ..., h', w') at a place of the grid."""
        if self.sums is None:
            self.sums = DenseOutput(*(None if value is None else self._zeros(value) for value in output))
            self.counts = torch.zeros(self.grid, device=output.class_logits.device)
        height, width = output.class_logits.shape[2:]
        part = (..., slice(row, row + height), slice(column, column + width))
        self.counts[part] += 1
        for total, value in zip(self.sums, output):
            if total is not None:
                total[part if value.dim() == 4 else ...] += value
        self.parts += 1

    def _zeros(self, value: Tensor) -> Tensor:
        shape = (*value.shape[:2], *self.grid) if value.dim() == 4 else value.shape
        return torch.zeros(shape, device=value.device)

    def mean(self) -> DenseOutput:
        """Maps divided by the parts on each cell, scores by the number of parts."""
        means = [None if total is None else total / (self.counts if total.dim() == 4 else self.parts) for total in self.sums]
        return DenseOutput(*means)


def _to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, h, w) resized to `grid`, bilinear, in float32."""
    maps = maps.float()
    return maps if tuple(maps.shape[2:]) == grid else F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Photos (B, 3, H, W) at `size`: bilinear, antialiased, in their own type; uint8 ones are rounded."""
    if tuple(image.shape[2:]) == tuple(size):
        return image
    resized = F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized if image.is_floating_point() else resized.round().clamp(0, 255).to(image.dtype)
