"""A block of open_clip's towers in the pieces that dense and prompted passes share, quicker than the block's own code.

A block is `open_clip.transformer.ResidualAttentionBlock`; results are those of its `forward` up to rounding.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUICK_GELU = 1.702
"""QuickGELU(x) = x * sigmoid(1.702 x) = silu(1.702 x) / 1.702."""


def run_block(block: nn.Module, tokens: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """Tokens (N, L, width) -> the same shape; `mask` (L, L) is added to the attention's logits."""
    query, keys, values = heads(block.attn, block.ln_1(tokens))
    mask = mask if mask is None else mask.to(query.dtype)
    return after_attention(block, tokens, F.scaled_dot_product_attention(query, keys, values, attn_mask=mask))


def run_block_for_first(block: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens (N, L, width) -> (N, 1, width), what `run_block` makes of the first of them."""
    attention, width = block.attn, tokens.shape[2]
    normalised = block.ln_1(tokens)
    # `MultiheadAttention` would, under autocast, repeat the weights for every sample
    query = F.linear(normalised[:, :1], attention.in_proj_weight[:width], attention.in_proj_bias[:width])
    mixed = F.linear(normalised, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    query = query.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    keys, values = mixed.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return after_attention(block, tokens[:, :1], F.scaled_dot_product_attention(query, keys, values))


def heads(attention: nn.MultiheadAttention, tokens: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values (N, heads, L, d) of normalised tokens (N, L, width)."""
    mixed = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    return mixed.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def after_attention(block: nn.Module, tokens: Tensor, found: Tensor) -> Tensor:
    """What follows in a block: tokens (N, L, width) and what their heads found (N, heads, L, d) -> (N, L, width)."""
    tokens = tokens + block.ls_1(block.attn.out_proj(found.transpose(1, 2).flatten(2)))
    return tokens + block.ls_2(feed_forward(block.mlp, block.ln_2(tokens)))


def feed_forward(mlp: nn.Sequential, tokens: Tensor) -> Tensor:
    """The block's two linear layers; the constants of QuickGELU are factors of the matrix products and cost no pass of their own."""
    expand, activation, contract = mlp
    if isinstance(activation, nn.GELU):
        return mlp(tokens)
    rows = tokens.flatten(0, -2)
    hidden = torch.addmm(expand.bias * QUICK_GELU, rows, expand.weight.T, alpha=QUICK_GELU)
    hidden = F.silu(hidden, inplace=not hidden.requires_grad)
    return torch.addmm(contract.bias, hidden, contract.weight.T, alpha=1 / QUICK_GELU).view_as(tokens)
