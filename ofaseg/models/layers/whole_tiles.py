"""Numbers of tokens that suit attention in bfloat16 on a CPU."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16
"""Keys that fill a tile of a CPU's matrix products. With other numbers of keys PyTorch's attention takes up to three times as long
(docs/benchmarks.md)."""
BLOCK = 512
"""Keys that PyTorch's attention takes at once; of rows as long as that some gain and some lose (docs/benchmarks.md), so they stay."""
LEAST = 28
"""Tokens per zero from which attention gains more than the rest of a transformer loses by zeros."""


def whole_tiles(tokens: Tensor) -> tuple[Tensor, Optional[Tensor]]:
    """Tokens that every other token attends to, filled up to whole tiles where attention will be in bfloat16 on a CPU and gain by it.

    Args:
        tokens: (B, N, D).

    Returns:
        (B, N', D), the tokens and zeros after them; and a mask (1, 1, 1, N') of 0 for tokens and -inf for zeros, to be added to
        attention scores, or None where nothing was added: then N' is N. What comes out for the tokens is the same up to rounding.
    """
    if tokens.device.type != "cpu" or _work_type(tokens) != torch.bfloat16:  # first: compiled code then depends on no number of tokens
        return tokens, None
    count = tokens.shape[1]
    missing = -count % TILE
    if not 0 < missing * LEAST <= count < BLOCK:
        return tokens, None
    mask = torch.zeros(1, 1, 1, count + missing, device=tokens.device, dtype=tokens.dtype)
    mask[..., count:] = -torch.inf
    return F.pad(tokens, (0, 0, 0, missing)), mask


def _work_type(tokens: Tensor) -> torch.dtype:
    """The type of matrix products with these tokens; autocast leaves float64 as it is."""
    cast = torch.is_autocast_enabled("cpu") and tokens.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if cast else tokens.dtype
