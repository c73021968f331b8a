"""Relative-position terms of an attention bias, kept as small factors until they are added.

A term covers a block of the (H, T, S) bias. Its `factor` is small and differentiable; `add` writes the block into a bias
in place and `reduce` is the transpose of `add`: from the gradient of the bias to that of the factor. So a dense bias is
never part of the autograd graph.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.models.ofa import embeddings


class TextTerm:
    """Bias inside a text of `length` tokens that starts at position `start` of queries and keys.

    Factor: (H, 2*length-1) values of the distances length-1 .. -(length-1), from the (2*bucket_size-1, H) `table`.
    """

    def __init__(self, table: Tensor, start: int, length: int):
        self.start, self.length = start, length
        bucket_size = (table.shape[0] + 1) // 2
        distance = torch.arange(length - 1, -length, -1, device=table.device)
        self.factor = F.embedding(embeddings.token_bucket(distance, bucket_size), table).T

    def add(self, bias: Tensor, factor: Tensor) -> None:
        end = self.start + self.length
        bias[:, self.start : end, self.start : end] += factor.unfold(1, self.length, 1).flip(1)

    def reduce(self, gradient: Tensor) -> Tensor:
        """Sums along the diagonals: with rows reversed and padded to 2L, a row of width 2L-1 starts one column later each time."""
        length, end = self.length, self.start + self.length
        block = F.pad(gradient[:, self.start : end, self.start : end].flip(1), (0, length)).flatten(1)
        return block[:, : length * (2 * length - 1)].unflatten(1, (length, -1)).sum(1)


class BosTerm:
    """Bias of the bos position in front of a patch grid: its row, its column, and itself.

    Factor: (3, H), the last three rows of a grid's relative-position table.
    """

    def __init__(self, table: Tensor):
        self.factor = table[-3:]

    def add(self, bias: Tensor, factor: Tensor) -> None:
        bias[:, 0, 1:] += factor[0].unsqueeze(-1)
        bias[:, 1:, 0] += factor[1].unsqueeze(-1)
        bias[:, 0, 0] += factor[2]

    def reduce(self, gradient: Tensor) -> Tensor:
        return torch.stack([gradient[:, 0, 1:].sum(1), gradient[:, 1:, 0].sum(1), gradient[:, 0, 0]])


class GridTerm:
    """Bias between the cells of an (h, w) patch grid that starts at position `start` of queries and keys.

    The bias of the square grid of side `side`, read from the table, is resized bilinearly to the grid, for queries and for
    keys; with `direct` the top-left (h, w) cells are taken instead.

    Args:
        table: (embeddings.num_image_buckets(bucket_size), H) table of a layer.
        grid: (h, w).
        cells: only the first `cells` of the h*w cells take part.

    The table is expanded along columns first: values for (row distance, column of query, column of key). When the rows of
    the grid are those of the table, every row of queries reads one window of them; else a small matrix resizes the rows.
    """

    def __init__(self, table: Tensor, grid: tuple[int, int], start: int, side: int, bucket_size: int, direct: bool = False, cells: int = 0):
        self.h, self.w = grid
        self.start, self.side = start, side
        self.cells = cells or self.h * self.w
        width = 2 * bucket_size - 1
        low, high = bucket_size - side, bucket_size + side - 1
        square = table[: width * width].T.unflatten(1, (width, width))[:, low:high, low:high]
        columns = embeddings.axis_expansion(self.w, side, direct, table.device).to(table.dtype)
        expanded = square @ columns.T  # (H, 2*side-1, w*w)
        self.windowed = table.device.type == "cpu" and (direct or self.h == side)
        if self.windowed:
            # row distance falls from left to right, so that rows of keys rise: (H, column of query, distance, column of key)
            self.factor = expanded.flip(1).unflatten(2, (self.w, self.w)).transpose(1, 2).flatten(2)
        else:
            self.factor = expanded
            self.rows = embeddings.axis_expansion(self.h, side, direct, table.device).to(table.dtype)

    def _windows(self, block: Tensor, factor: Tensor):
        """Pairs (rows of the block, window of the factor) for every row of the grid."""
        for row in range(self.h):
            first, end = row * self.w, min((row + 1) * self.w, self.cells)
            window = (self.side - 1 - row) * self.w
            yield block[:, first:end], factor[:, : max(end - first, 0), window : window + self.cells]

    def _block(self, bias: Tensor) -> Tensor:
        end = self.start + self.cells
        return bias[:, self.start : end, self.start : end]

    def add(self, bias: Tensor, factor: Tensor) -> None:
        block = self._block(bias)
        if self.windowed:
            for part, window in self._windows(block, factor):
                part += window
            return
        full = (self.rows @ factor).unflatten(2, (self.w, self.w)).unflatten(1, (self.h, self.h)).transpose(2, 3)
        if self.cells == self.h * self.w:
            block.unflatten(2, (self.h, self.w)).unflatten(1, (self.h, self.w)).add_(full)
        else:
            block += full.flatten(3, 4).flatten(1, 2)[:, : self.cells, : self.cells]

    def reduce(self, gradient: Tensor) -> Tensor:
        block = self._block(gradient)
        if self.windowed:
            total = torch.zeros(len(block), self.w, (2 * self.side - 1) * self.w, dtype=block.dtype, device=block.device)
            for part, window in self._windows(block, total):
                window += part
            return total
        if self.cells < self.h * self.w:
            missing = self.h * self.w - self.cells
            block = F.pad(block, (0, missing, 0, missing))
        block = block.unflatten(2, (self.h, self.w)).unflatten(1, (self.h, self.w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return self.rows.T @ block


@dataclass
class AttentionBias:
    """The bias (H, T, S) that all samples of a batch share: an absolute part, relative terms, and the causal mask.

    Attributes:
        absolute: (H, T, S).
        terms: relative terms to add.
        causal: queries do not see later keys; `dense` leaves the mask out.
    """

    absolute: Tensor
    terms: tuple = ()
    causal: bool = False

    def dense(self) -> Tensor:
        """(H, T, S) sum, differentiable."""
        if not self.terms:
            return self.absolute
        factors = [term.factor for term in self.terms]
        with torch.autocast(self.absolute.device.type, enabled=False):
            if not torch.is_grad_enabled():
                return add_terms(self.terms, self.absolute, factors)
            return _AddTerms.apply(self.terms, self.absolute, *factors)

    def masked(self) -> Tensor:
        """(H, T, S) sum, -inf above the diagonal when causal."""
        bias = self.dense()
        if not self.causal:
            return bias
        later = torch.ones(bias.shape[1:], dtype=torch.bool, device=bias.device).triu(1)
        return bias.masked_fill(later, float("-inf"))


def add_terms(terms: tuple, absolute: Tensor, factors) -> Tensor:
    """A new (H, T, S) tensor: `absolute` plus every term."""
    bias = absolute.clone()
    for term, factor in zip(terms, factors):
        term.add(bias, factor)
    return bias


class _AddTerms(torch.autograd.Function):
    """`add_terms` with its transpose as gradient; nothing is saved."""

    @staticmethod
    def forward(ctx, terms: tuple, absolute: Tensor, *factors: Tensor) -> Tensor:
        ctx.terms = terms
        return add_terms(terms, absolute, factors)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return None, gradient, *(term.reduce(gradient) for term in ctx.terms)
