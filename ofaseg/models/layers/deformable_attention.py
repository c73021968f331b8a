"""Multi-scale deformable attention in plain torch (Zhu et al., "Deformable DETR", ICLR 2021, eq. 3).

Two forms of the same sum: gathering the four corners of every sampled point in one weighted lookup, which is several times faster
on a CPU, and `grid_sample` level by level, which suits a GPU.
"""

import math
from typing import Iterator, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_BAGS = 2048
"""Queries of a head whose corners exist at a time on a CPU: they fit into its cache."""
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
    """As `sample`, in float32 or better: one bag of the 4 * levels * points corners per query and head, summed by `embedding_bag`."""
    if value.dtype not in (torch.float32, torch.float64):
        return sample_by_gather(value.float(), shapes, reference.float(), offsets.float(), weights.float()).to(value.dtype)
    heights, widths = torch.tensor(shapes, dtype=offsets.dtype, device=value.device).T[..., None]  # (levels, 1)
    x = reference[:, 0, None, None, None] * widths - 0.5 + offsets[..., 0]  # (B, N, heads, levels, points)
    y = reference[:, 1, None, None, None] * heights - 0.5 + offsets[..., 1]
    return _Gather.apply(value, x, y, weights.to(value.dtype), shapes).flatten(2)


class _Gather(torch.autograd.Function):
    """Memory (B, S, heads, D) read at x and y (B, N, heads, levels, points), in pixels of the level -> (B, N, heads, D).

    Corners are found anew in the backward pass, a few queries at a time: they never exist all at once. The memory's gradient is a product
    with a transposed sparse matrix, which takes a tenth of the time of `embedding_bag`'s own.
    """

    @staticmethod
    def forward(ctx, value: Tensor, x: Tensor, y: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
        ctx.save_for_backward(value, x, y, weights)
        ctx.shapes = shapes
        table, bags = value.reshape(-1, value.shape[-1]), []
        for part in _Corners.chunks(x, y, weights, value.shape, shapes):
            bags.append(F.embedding_bag(part.rows, table, mode="sum", per_sample_weights=part.factors()))
        return torch.cat(bags).view(*x.shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        from scipy.sparse import csr_array  # takes a while, and only training on a CPU needs it

        value, x, y, weights = ctx.saved_tensors
        grad, table = grad.reshape(-1, value.shape[-1]), value.reshape(-1, value.shape[-1])
        rows, factors, gradients = [], [], []
        for part, of_bags in zip(_Corners.chunks(x, y, weights, value.shape, ctx.shapes), grad.split(CHUNK_BAGS)):
            rows.append(part.rows)
            factors.append(part.factors())
            gradients.append(part.gradients(torch.einsum("ncd,nd->nc", F.embedding(part.rows, table), of_bags)))
        rows, factors = torch.cat(rows), torch.cat(factors)
        ends = torch.arange(0, rows.numel() + 1, rows.shape[1], dtype=rows.dtype)
        matrix = csr_array((factors.numpy().ravel(), rows.numpy().ravel(), ends.numpy()), shape=(len(rows), len(table)))
        of_value = torch.from_numpy(matrix.T @ grad.numpy()).view_as(value)
        return of_value, *(torch.cat(parts).view_as(x) for parts in zip(*gradients)), None


class _Corners(NamedTuple):
    """The four pixels around each point of n bags.

    Attributes:
        rows: (n, 4 * levels * points) rows of the memory as a table (B * S * heads, D).
        shares: (2, 2, n, levels, points) bilinear shares along x and along y of the pixels before and after the point, 0 for those outside.
        slopes: of the same shape, their derivatives with respect to x or y.
        weights: (n, levels, points).
    """

    rows: Tensor
    shares: Tensor
    slopes: Tensor
    weights: Tensor

    @classmethod
    def chunks(cls, x: Tensor, y: Tensor, weights: Tensor, value_shape, shapes: Shapes) -> Iterator["_Corners"]:
        """Of all bags, (photo, query, head) in this order, `CHUNK_BAGS` at a time."""
        batch, total, heads, _ = value_shape
        index = torch.int32 if batch * total * heads < 2**31 else torch.int64
        photos, of_heads = (torch.arange(size, dtype=index, device=x.device) for size in (batch, heads))
        first = (photos[:, None] * (total * heads) + of_heads)[:, None].expand(-1, x.shape[1], -1).reshape(-1, 1, 1)
        sizes = torch.tensor(shapes, dtype=index, device=x.device)
        starts = sizes.prod(1, dtype=index).cumsum(0, dtype=index) - sizes.prod(1, dtype=index)
        # one value per element: a level's own would be repeated in steps too short for vector instructions
        table = torch.stack([sizes[:, 1] - 1, sizes[:, 0] - 1, sizes[:, 1] * heads, starts * heads])
        table = table[:, None, :, None].expand(-1, CHUNK_BAGS, -1, x.shape[-1]).contiguous()
        for *parts, of_bags in zip(*(tensor.flatten(0, 2).split(CHUNK_BAGS) for tensor in (x, y, weights)), first.split(CHUNK_BAGS)):
            last, (line, start) = table[:2, : len(of_bags)], table[2:, : len(of_bags)]
            (column, row), shares, slopes = _neighbours(torch.stack(parts[:2]), last)
            place = (row * line).add_(start + of_bags)[:, None] + column * heads  # (2, 2, n, levels, points)
            yield cls(_by_bag(place), shares, slopes, parts[2])

    def factors(self) -> Tensor:
        """(n, 4 * levels * points) what the rows are multiplied by."""
        along_x, along_y = self.shares
        return _by_bag((along_y * self.weights)[:, None] * along_x)

    def gradients(self, of_factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients with respect to x, y and weights, each (n, levels, points), from that of the factors."""
        of_corners = of_factors.view(-1, 2, 2, *self.weights.shape[1:]).permute(1, 2, 0, 3, 4).contiguous()
        along_x, along_y = self.shares
        of_y, of_x = (of_corners * along_x).sum(1), (of_corners * along_y[:, None]).sum(0)
        slopes = (torch.stack([of_x, of_y]) * self.slopes).sum(1) * self.weights
        return *slopes, (of_y * along_y).sum(0)


def _by_bag(corners: Tensor) -> Tensor:
    """(2, 2, n, levels, points) -> (n, 4 * levels * points)."""
    return corners.permute(2, 0, 1, 3, 4).flatten(1)


def _neighbours(places: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places (2, n, levels, points) along x and y, on axes of samples 0..last -> the two next samples, their shares, and their slopes.

    Each is (2, 2, n, levels, points), axes first; shares and slopes are 0 for samples outside.
    """
    low = places.floor()
    share = places - low
    # where it is far outside, any place outside will do that is a whole number of the type
    index = low.clamp_(-2, 2**30).to(last.dtype)
    index = torch.stack([index, index + 1], 1)
    within = index.clamp(min=0).minimum(last[:, None])
    slopes = torch.eq(within, index, out=torch.empty(index.shape, dtype=places.dtype, device=places.device))
    shares = torch.stack([1 - share, share], 1).mul_(slopes)
    slopes[:, 0].neg_()
    return within, shares, slopes


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
