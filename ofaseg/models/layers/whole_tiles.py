"""Numbers of tokens that suit attention in bfloat16 on a CPU."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16
"""Rows and columns that a CPU's matrix unit multiplies at once. With other numbers of keys PyTorch's attention takes up to three times
as long (docs/benchmarks.md)."""
BLOCK = 512
"""Keys that PyTorch's attention takes at once: of longer rows most blocks are whole anyway."""
LEAST = 24
"""Tokens per zero that pay for what the rest of a transformer does with zeros."""


def whole_tiles(tokens: Tensor) -> tuple[Tensor, Optional[Tensor]]:
    """Tokens that every other token attends to, filled up to whole tiles where attention will be in bfloat16 on a CPU.

    Args:
        tokens: (B, N, D).

    Returns:
        (B, N', D), the tokens and zeros after them; and a mask (1, 1, 1, N') of 0 for tokens and -inf for zeros, to be added to
        attention scores, or None where nothing was added: then N' is N. What comes out for the tokens is the same either way.
    """
    count, device = tokens.shape[1], tokens.device
    missing = -count % TILE
    pays = 0 < missing * LEAST <= count < BLOCK
    if device.type != "cpu" or not pays or _work_type(tokens) != torch.bfloat16:
        return tokens, None
    mask = torch.zeros(1, 1, 1, count + missing, device=device, dtype=tokens.dtype)
    mask[..., count:] = -torch.inf
    return F.pad(tokens, (0, 0, 0, missing)), mask


def _work_type(tokens: Tensor) -> torch.dtype:
    """The type of matrix products with these tokens."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else tokens.dtype
