"""OFA's positions: absolute position tables and relative-position biases, for any patch grid.

Positions never join the tokens; they act through biases of the attention scores (reference: OFA, section "2.3"). A
relative bias of a patch grid is Toeplitz along both axes, and bilinear resizing is separable, so the whole (h, w) bias is
``M T N^T`` with the (2s-1, 2s-1) table T of a square grid of side s and two small matrices that depend on sizes only.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.utils.resize import resize_matrix

MAX_TOKEN_DISTANCE = 1024
"""Distances of text tokens are bucketed up to here, whatever the longest text of a model is."""


def token_bucket(distance: Tensor, bucket_size: int) -> Tensor:
    """Bucket 0 .. 2*bucket_size-2 of signed distances `distance` = query - key (any shape, long).

    Distances below half the bucket size have a bucket each, larger ones share logarithmic buckets.
    """
    middle = bucket_size // 2
    sign = torch.sign(distance)
    size = torch.where((distance < middle) & (distance > -middle), middle - 1, distance.abs())
    scale = math.log((MAX_TOKEN_DISTANCE - 1) / middle)
    logarithmic = torch.ceil(torch.log(size / middle) / scale * (middle - 1)) + middle
    bucket = torch.where(size <= middle, distance, logarithmic.int() * sign)
    return (bucket + bucket_size - 1).long()


def num_image_buckets(bucket_size: int) -> int:
    """Rows of a relative-position table of a grid of side `bucket_size`.

    With distances r and c in rows and columns (query minus key), row (r + b - 1) * (2b - 1) + c + b - 1 belongs to a pair of
    cells; the last three are special token to cell, cell to special token, and special token to itself.
    """
    return (2 * bucket_size - 1) ** 2 + 3


@functools.lru_cache(maxsize=256)
def axis_expansion(size: int, side: int, direct: bool, device: torch.device) -> Tensor:
    """(size*size, 2*side-1) matrix from distances on a `side` axis to pairs (query, key) on a `size` axis.

    With `direct`, the first `size` of `side` positions are taken as they are; otherwise the axis is resized.
    """
    weights = torch.eye(size, side) if direct or size == side else resize_matrix(size, side)
    position = torch.arange(side)
    distance = (position[:, None] - position[None, :] + side - 1).flatten()
    pairs = torch.einsum("qr,ks->qkrs", weights, weights).flatten(2).flatten(0, 1)
    expansion = torch.zeros(size * size, 2 * side - 1).index_add_(1, distance, pairs)
    return expansion.to(device)


def grid_positions(table: Tensor, grid: tuple[int, int], side: int, bucket_size: int, direct: bool = False) -> Tensor:
    """(h*w, D) absolute position vectors of a patch grid, from the (bucket_size^2 + 1, D) table.

    The `side` x `side` corner of the table is resized bilinearly to `grid`; with `direct` the (h, w) corner is taken.
    Row 0 of the table belongs to the special token and is not read.
    """
    h, w = grid
    square = table[1 : bucket_size * bucket_size + 1].unflatten(0, (bucket_size, bucket_size))
    if direct or grid == (side, side):
        return square[:h, :w].flatten(0, 1)
    corner = square[:side, :side].permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(corner, size=grid, mode="bilinear", align_corners=False)[0].flatten(1).T


def mean_embeddings(weight: Tensor, token_ids: Tensor, pad: int) -> Tensor:
    """(C, D) mean embedding of each row of `token_ids` (C, L), right-padded with `pad`, none empty."""
    present = token_ids.ne(pad).unsqueeze(-1).to(weight.dtype)
    return (F.embedding(token_ids, weight) * present).sum(1) / present.sum(1)


def pad_token_lists(token_lists: list[list[int]], pad: int) -> Tensor:
    """(C, L) long: the lists of `token_lists`, right-padded. Raises ValueError for an empty list."""
    for k, tokens in enumerate(token_lists):
        if len(tokens) == 0:
            raise ValueError(f"class {k} has no token; its name encodes to nothing, give another name")
    if not token_lists:
        raise ValueError("the class list is empty; give at least one class")
    length = max(len(tokens) for tokens in token_lists)
    return torch.tensor([list(tokens) + [pad] * (length - len(tokens)) for tokens in token_lists], dtype=torch.long)
