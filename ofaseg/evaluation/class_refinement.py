"""Class probabilities of a whole photo, refined along its colours; for any method."""

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.evaluation.dense_crf import dense_crf
from ofaseg.evaluation.pamr import pamr

CLASS_REFINEMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dense_crf": lambda image, probs: dense_crf(image, probs),
    "pamr": lambda image, probs: pamr(image.permute(2, 0, 1)[None], probs[None])[0],
}
"""Name -> function of image (H, W, 3) uint8 and probabilities (K, H, W)."""


def refine_classes(name: str, image: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Refines the classes that are the best of some cell of the grid; of the others there may be hundreds, and they are left out.

    Args:
        name: one of `CLASS_REFINEMENTS`.
        image: (H, W, 3) uint8.
        probs: (K, h, w) probabilities on a grid; brought to (H, W) bilinearly.

    Returns: ids (k,) of the refined classes, ascending, and their values (k, H, W).

    Raises:
        ValueError: an unknown name.
    """
    if name not in CLASS_REFINEMENTS:
        raise ValueError(f"unknown refinement of classes {name!r}; there are none, {', '.join(CLASS_REFINEMENTS)}")
    ids = probs.argmax(0).unique()
    fine = F.interpolate(probs[ids][None].float(), size=tuple(image.shape[:2]), mode="bilinear", align_corners=False)[0]
    fine = fine / fine.sum(0).clamp(min=torch.finfo(fine.dtype).tiny)
    return ids, CLASS_REFINEMENTS[name](image, fine)
