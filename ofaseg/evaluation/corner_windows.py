"""Fusioner's sliding windows: photos at their own size, windows that stop at the border and are padded.

Unlike `ofaseg.evaluation.tiling`, whose last windows are moved back into the photo, a window here keeps its place and what lies
outside the photo is filled in; scores are averaged at every pixel.
"""

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.evaluation.tiling import OutputSum
from ofaseg.structures import DenseOutput

PADDING = -1.0
"""What the published code fills in, in normalised space; unrelated to the photos' statistics."""


def published_stride(window: int) -> int:
    """Pixels between windows in the published code: two thirds of a window, cut off."""
    return int(window * 2 / 3)


def window_boxes(height: int, width: int, window: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(top, left, bottom, right) of the windows of a photo, row by row, ending at the border at the latest.

    Raises:
        ValueError: window or stride is not above 0, or the stride is larger than the window.
    """
    if not 0 < stride <= window:
        raise ValueError(f"window {window} and stride {stride}: both must be above 0, and the stride no more than the window")
    starts = [[stride * k for k in range(max(0, -(-(side - window) // stride)) + 1)] for side in (height, width)]
    return [(top, left, min(top + window, height), min(left + window, width)) for top in starts[0] for left in starts[1]]


def corner_windows(
    predict: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int = 0, padding: float = PADDING, batch: int = 16
) -> Tensor:
    """Mean scores of all windows at every pixel of a photo.

    Args:
        predict: normalised photos (n, 3, window, window) -> scores (n, K, window, window).
        image: (3, H, W) or (1, 3, H, W), normalised.
        window: side in pixels; a photo no larger than it is one window.
        stride: pixels between windows, 0 for the published two thirds of a window.
        padding: value around the photo.
        batch: windows that go through `predict` at once.

    Returns: (K, H, W) float32.

    Raises:
        ValueError: more than one photo, or a stride that is not 0..window.
    """
    image = image.squeeze(0) if image.ndim == 4 else image
    if image.ndim != 3:
        raise ValueError(f"one photo (3, H, W) at a time, not {tuple(image.shape)}: photos differ in their windows")
    height, width = image.shape[1:]
    boxes = window_boxes(height, width, window, stride or published_stride(window))
    total = OutputSum((height, width))
    for start in range(0, len(boxes), batch):
        part = boxes[start : start + batch]
        scores = predict(torch.stack([_padded(image[:, top:bottom, left:right], window, padding) for top, left, bottom, right in part]))
        for (top, left, bottom, right), of_window in zip(part, scores):
            total.add(DenseOutput(of_window[None, :, : bottom - top, : right - left].float()), top, left)
    return total.mean().class_logits[0]


def _padded(part: Tensor, window: int, padding: float) -> Tensor:
    """(3, h, w) -> (3, window, window), filled to the right and below."""
    return F.pad(part, (0, window - part.shape[2], 0, window - part.shape[1]), value=padding)
