"""Relative biases by literal lookup and resizing, in the words of the published code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.models.ofa import embeddings


def image_bucket(query: Tensor, key: Tensor, bucket_size: int) -> Tensor:
    """Bucket of a pair of grid cells given as ids: 0 the special token, row * bucket_size + column + 1 a cell.

    Broadcasts `query` against `key` (long). The last three of the (2b-1)^2 + 3 buckets are special-to-cell,
    cell-to-special and special-to-special.
    """
    width = 2 * bucket_size - 1
    query, key = torch.broadcast_tensors(query, key)
    rows = (query - 1) // bucket_size - (key - 1) // bucket_size
    columns = (query - 1) % bucket_size - (key - 1) % bucket_size
    bucket = (rows + bucket_size - 1) * width + columns + bucket_size - 1
    bucket = torch.where(query == 0, width * width, bucket)
    bucket = torch.where(key == 0, width * width + 1, bucket)
    return torch.where((query == 0) & (key == 0), width * width + 2, bucket)


def text_bias(table: Tensor, length: int) -> Tensor:
    """(H, length, length) from the (2 * bucket_size - 1, H) table of a layer."""
    positions = torch.arange(length)
    buckets = embeddings.token_bucket(positions[:, None] - positions[None, :], (len(table) + 1) // 2)
    return table[buckets].permute(2, 0, 1)


def square_bias(table: Tensor, side: int, bucket_size: int) -> Tensor:
    """(H, side*side, side*side) straight from the bucket ids."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids = (row * bucket_size + column + 1).flatten()
    return table[image_bucket(ids[:, None], ids[None, :], bucket_size)].permute(2, 0, 1)


def grid_bias(table: Tensor, grid: tuple[int, int], side: int, bucket_size: int, direct: bool = False) -> Tensor:
    """(H, h*w, h*w): the square bias resized to the grid, keys first, or its corner."""
    bias = square_bias(table, side, bucket_size)
    if direct:
        h, w = grid
        return bias.unflatten(2, (side, side)).unflatten(1, (side, side))[:, :h, :w, :h, :w].reshape(len(bias), h * w, h * w)
    for _ in range(2):
        heads, queries = bias.shape[:2]
        bias = F.interpolate(bias.reshape(-1, 1, side, side), size=grid, mode="bilinear", align_corners=False)
        bias = bias.reshape(heads, queries, -1).transpose(1, 2)
    return bias
