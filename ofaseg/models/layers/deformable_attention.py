"""Multi-scale deformable attention in plain torch (Zhu et al., "Deformable DETR", ICLR 2021, eq. 3).

Two forms of the same sum: gathering the four corners of every sampled point in one weighted lookup, which is several times faster
on a CPU, and `grid_sample` level by level, which suits a GPU.
"""

import math
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_BAGS = 256
"""Bags whose rows exist at a time in the backward pass: they fit into a core's cache."""
Shapes = Sequence[tuple[int, int]]
"""(h, w) of each level."""


class DeformableAttention(nn.Module):
    """Every query reads `points` places of every level, around its own position.

    Args:
        dim: width of queries and memory.
        heads, levels, points: attention heads, feature maps, and points per head and map.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head h looks in direction 2 * pi * h / heads, point p at p + 1 times a step that reaches the next pixel."""
        angles = torch.arange(self.heads, dtype=torch.float32) * (2.0 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        for weight in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(weight)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, memory: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Queries (B, N, dim) at `reference` (N, 2), x and y in 0..1, read memory (B, S, dim), level by level -> (B, N, dim)."""
        split = (self.heads, self.levels, self.points)
        value = self.value_proj(memory).unflatten(-1, (self.heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (*split, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, split[1:])
        return self.output_proj(sample(value, shapes, reference, offsets, weights))


def sample(value: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples, in the form that suits the device.

    Args:
        value: (B, S, heads, D), S the sum of h * w over levels.
        shapes: (h, w) of each level.
        reference: (N, 2) x and y of the queries in 0..1, the same on every level.
        offsets: (B, N, heads, levels, points, 2) x and y in pixels of the level.
        weights: (B, N, heads, levels, points).

    Returns: (B, N, heads * D); what lies outside a map counts as 0.
    """
    form = sample_by_gather if value.device.type == "cpu" else sample_by_grid
    return form(value, shapes, reference, offsets, weights)


def sample_by_gather(value: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """As `sample`: one bag of the 4 * levels * points corners per query and head, summed by `embedding_bag`."""
    batch, total, heads, dim = value.shape
    queries = offsets.shape[1]
    # row of the table (B * S * heads, D) at which a photo and head begin; all further steps are along S
    first = torch.arange(batch, device=value.device)[:, None, None, None] * (total * heads)
    first = first + torch.arange(heads, device=value.device)[:, None]  # (B, 1, heads, 1)
    rows, factors, start = [], [], 0
    for level, (height, width) in enumerate(shapes):
        x = reference[:, 0, None, None] * width - 0.5 + offsets[:, :, :, level, :, 0]  # (B, N, heads, points)
        y = reference[:, 1, None, None] * height - 0.5 + offsets[:, :, :, level, :, 1]
        (column, share_x), (row, share_y) = _neighbours(x, width), _neighbours(y, height)
        place = (row * width)[..., :, None, :] + column[..., None, :, :]  # (B, N, heads, 2, 2, points)
        rows.append(first + ((place + start) * heads).flatten(3))
        shares = share_y[..., :, None, :] * share_x[..., None, :, :]
        factors.append((shares * weights[:, :, :, level, None, None]).flatten(3))
        start += height * width
    rows = torch.cat(rows, -1).view(batch * queries * heads, -1)
    factors = torch.cat(factors, -1).view(batch * queries * heads, -1)
    bags = _WeightedBags.apply(value.reshape(-1, dim), rows, factors.to(value.dtype))
    return bags.view(batch, queries, heads * dim)


def _neighbours(place: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Places (..., points) on an axis of `size` samples -> the two next samples (..., 2, points) and their shares, 0 for those outside."""
    low = place.detach().floor()
    index = torch.stack([low, low + 1], -2)
    share = torch.stack([low + 1 - place, place - low], -2)
    return index.clamp(0, size - 1).long(), share * ((index >= 0) & (index < size))


class _WeightedBags(torch.autograd.Function):
    """Sums of weighted rows of a table (R, D): rows and their factors (N, C) -> (N, D).

    The gradient of `embedding_bag` sorts all rows and visits those of the table one by one. As product with a transposed sparse matrix
    it is ten times as quick.
    """

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, factors)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=factors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        from scipy.sparse import csr_array  # takes a while, and only training on a CPU needs it

        table, rows, factors = ctx.saved_tensors
        ends = torch.arange(0, rows.numel() + 1, rows.shape[1])
        matrix = csr_array((factors.numpy().ravel(), rows.numpy().ravel(), ends.numpy()), shape=(len(rows), len(table)))
        of_table = torch.from_numpy(matrix.T @ grad.contiguous().numpy())
        pairs = zip(rows.split(CHUNK_BAGS), grad.split(CHUNK_BAGS))
        return of_table, None, torch.cat([torch.einsum("ncd,nd->nc", F.embedding(part, table), of_bags) for part, of_bags in pairs])


def sample_by_grid(value: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """As `sample`, by `grid_sample` over one level after the other."""
    batch, _, heads, dim = value.shape
    result, start = None, 0
    for level, (height, width) in enumerate(shapes):
        part = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        x = reference[:, 0, None, None] + offsets[:, :, :, level, :, 0] / width
        y = reference[:, 1, None, None] + offsets[:, :, :, level, :, 1] / height
        grid = (2 * torch.stack([x, y], -1) - 1).transpose(1, 2).flatten(0, 1)  # (B * heads, N, points, 2)
        sampled = F.grid_sample(part, grid.to(part.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
        factors = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).to(part.dtype)
        found = torch.einsum("bdnp,bnp->bnd", sampled, factors)
        result = found if result is None else result + found
        start += height * width
    return result.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)
