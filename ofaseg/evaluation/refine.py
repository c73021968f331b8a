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
    values = masks.flatten(0, -3)[:, None] if masks.dim() > 2 else masks[None, None]
    values = -_box_maximum(-_box_maximum(values.float(), kernel), kernel)
    return (values > 0.5).view(masks.shape)


def _box_maximum(values: Tensor, kernel: int) -> Tensor:
    """(M, 1, H, W) largest value in the square around every pixel: rows first, then columns."""
    half = kernel // 2
    return F.max_pool2d(F.max_pool2d(values, (1, kernel), 1, (0, half)), (kernel, 1), 1, (half, 0))


def nearest_resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) -> (..., H, W) for `size` = (H, W), taking the very pixels that ``cv2.INTER_NEAREST`` takes.

    Torch's "nearest" and "nearest-exact" round differently for some sizes.
    """
    rows, columns = (_nearest_source(now, wanted, masks.device) for now, wanted in zip(masks.shape[-2:], size))
    return masks.index_select(-2, rows).index_select(-1, columns)


def _nearest_source(now: int, wanted: int, device) -> Tensor:
    """(wanted,) source index of every output position, by OpenCV's two divisions in float64."""
    position = torch.arange(wanted, dtype=torch.float64) * (1 / (wanted / now))
    return position.floor().long().clamp_(max=now - 1).to(device)
