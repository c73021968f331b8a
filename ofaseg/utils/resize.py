"""Bilinear resizing as a matrix: separable, linear, and the same for everything of one size."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.lru_cache(maxsize=256)
def resize_matrix(size: int, source: int, device="cpu") -> Tensor:
    """(size, source) matrix of the bilinear resize of one axis from `source` to `size` samples (align_corners False)."""
    eye = torch.eye(source).unsqueeze(0)
    return F.interpolate(eye, size=size, mode="linear", align_corners=False)[0].T.contiguous().to(device)
