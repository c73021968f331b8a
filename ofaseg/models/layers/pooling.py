"""Pooling of local tokens into one vector: LoDA (SimSeg, section 3.2), and the norm that goes with it."""

from typing import Optional

import torch
from torch import Tensor

NORM_EPS = 1e-8
"""Added to the length of a vector before dividing by it, as the published code does."""


def topk_mean(tokens: Tensor, k: int, mask: Optional[Tensor] = None) -> Tensor:
    """Per channel the mean of the k largest values over the tokens: which tokens these are differs from channel to channel.

    Only the winning tokens get a gradient; that is what makes local tokens speak for what they show.

    Args:
        tokens: (B, N, D).
        k: at least 1; more than N tokens count as N.
        mask: (B, N), non-zero for tokens that take part; None for all. Every sample needs at least k of them, for the
            result of a sample is to depend on nothing else in the batch.

    Returns: (B, D), in float32 under autocast.
    """
    tokens = tokens.float()
    if mask is not None:
        tokens = tokens.masked_fill(~mask.bool().unsqueeze(-1), torch.finfo(tokens.dtype).min)
    if k == 1:
        return tokens.amax(1)
    return tokens.topk(min(k, tokens.shape[1]), dim=1).values.mean(1)


def unit(vectors: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Vectors (..., D) divided by their length plus `eps`."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + eps)
