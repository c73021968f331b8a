"""From soft foreground maps of one image to binary masks, by name; closing of holes and resizing as OpenCV does them."""

from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.evaluation.dense_crf import binary_crf, pydensecrf_binary
from ofaseg.evaluation.pamr import pamr


def _by_pamr(image: Tensor | np.ndarray, maps: Tensor, threshold: float) -> Tensor:
    pixels = torch.as_tensor(image, device=maps.device).permute(2, 0, 1)[None]
    return pamr(pixels, maps[None])[0] >= threshold


REFINEMENTS: dict[str, Callable[[Tensor | np.ndarray, Tensor, float], Tensor]] = {
    "dense_crf": lambda image, maps, threshold: binary_crf(image, maps),
    "pydensecrf": lambda image, maps, threshold: pydensecrf_binary(image, maps),
    "pamr": _by_pamr,
    "threshold": lambda image, maps, threshold: maps >= threshold,
}
"""Name -> function of image, maps and threshold."""


def refine_masks(name: str, image: Tensor | np.ndarray, maps: Tensor, threshold: float = 0.5) -> Tensor:
    """Binary masks from the foreground maps of one image.

    Args:
        name: "dense_crf" (the default of SimSeg, needs no compiler), "pydensecrf" (the same by the compiled package),
            "pamr" (smoothed along colours, then thresholded) or "threshold" (nothing but the threshold).
        image: (H, W, 3) uint8.
        maps: (M, H, W) in 0..1, a map that is 1 where its class surely is.
        threshold: least value of the foreground for "pamr" and "threshold"; the dense CRF weighs 0.5 by itself.

    Returns:
        (M, H, W) bool on the maps' device.

    Raises:
        ValueError: an unknown name, or image and maps of different sizes.
        ImportError: "pydensecrf" is not installed.
    """
    if name not in REFINEMENTS:
        raise ValueError(f"unknown mask refinement {name!r}; there are {', '.join(sorted(REFINEMENTS))}")
    if maps.dim() != 3 or tuple(image.shape) != (*maps.shape[1:], 3):
        raise ValueError(f"image {tuple(image.shape)} and maps {tuple(maps.shape)}: need (H, W, 3) and (M, H, W)")
    return REFINEMENTS[name](image, maps, threshold)


def close_holes(masks: Tensor, kernel: int = 7) -> Tensor:
    """Morphological closing of (..., H, W) bool masks: one dilation, then one erosion with a square of ones.

    Equal to ``cv2.erode(cv2.dilate(mask, ones), ones)``: pixels outside the image never win, in either step.

    Raises:
        ValueError: the kernel is not a positive odd number.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel {kernel}: need a positive odd number")
    if not masks.numel():
        return masks.clone()
    ones = masks.to(torch.uint8)
    return _box_maximum(_box_maximum(ones, kernel) ^ 1, kernel) == 0


def _box_maximum(ones: Tensor, kernel: int) -> Tensor:
    """(..., H, W) zeros and ones -> the largest in the square around every pixel, on bytes: several times faster than pooling floats."""
    padded = F.pad(ones, (kernel // 2,) * 4)
    for dim in (-1, -2):
        reach = 1  # pixels that a value stands for; they double until the kernel is full
        while reach < kernel:
            step = min(reach, kernel - reach)
            left = padded.shape[dim] - step
            padded = padded.narrow(dim, 0, left) | padded.narrow(dim, step, left)
            reach += step
    return padded


def nearest_resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) -> (..., H, W) for `size` = (H, W), taking the very pixels that ``cv2.INTER_NEAREST`` takes.

    Torch's "nearest" and "nearest-exact" round differently for some sizes.
    """
    rows, columns = (_nearest_source(now, wanted, masks.device) for now, wanted in zip(masks.shape[-2:], size))
    return masks.index_select(-1, columns).index_select(-2, rows)  # whole rows are copied last: that is quick


def _nearest_source(now: int, wanted: int, device) -> Tensor:
    """(wanted,) source index of every output position, by OpenCV's two divisions in float64."""
    position = torch.arange(wanted, dtype=torch.float64) * (1 / (wanted / now))
    return position.floor().long().clamp_(max=now - 1).to(device)
