"""Relative terms: what they add is the literal lookup (on grids where a swapped axis would show); `reduce` is the transpose of `add`."""

import pytest
import torch

from ofaseg.models.ofa import embeddings
from ofaseg.models.ofa.relative import AttentionBias, BosTerm, GridTerm, TextTerm
from tests.models.ofa import lookup

HEADS, SIDE, BUCKETS = 2, 4, 5


def grid_term(grid, start=0, cells=0, direct=False, windowed=True):
    torch.manual_seed(0)
    table = torch.randn(embeddings.num_image_buckets(BUCKETS), HEADS, requires_grad=True)
    term = GridTerm(table, grid, start, SIDE, BUCKETS, direct, cells)
    assert term.windowed == windowed
    return table, term


@pytest.mark.parametrize(
    "grid, direct, windowed",
    [((4, 4), False, True), ((4, 7), False, True), ((6, 4), False, False), ((3, 5), False, False), ((2, 3), True, True)],
)
@pytest.mark.parametrize("start, left_out", [(0, 0), (1, 0), (1, 3)])
def test_grid_term(grid, direct, windowed, start, left_out):
    cells = grid[0] * grid[1] - left_out
    table, term = grid_term(grid, start, cells, direct, windowed)
    absolute = torch.randn(HEADS, start + cells + 2, start + cells + 2)
    expected = absolute.clone()
    relative = lookup.grid_bias(table, grid, SIDE, BUCKETS, direct)[:, :cells, :cells]
    expected[:, start : start + cells, start : start + cells] += relative
    dense = AttentionBias(absolute, (term,)).dense()
    torch.testing.assert_close(dense, expected)
    weights = torch.randn_like(dense)
    ours, reference = (torch.autograd.grad((x * weights).sum(), table)[0] for x in (dense, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_text_term():
    table = torch.randn(2 * 16 - 1, HEADS, requires_grad=True)
    absolute = torch.randn(HEADS, 45, 45)
    expected = absolute.clone()
    expected[:, 5:, 5:] += lookup.text_bias(table, 40)
    dense = AttentionBias(absolute, (TextTerm(table, 5, 40),)).dense()
    torch.testing.assert_close(dense, expected)
    weights = torch.randn_like(dense)
    ours, reference = (torch.autograd.grad((x * weights).sum(), table)[0] for x in (dense, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_bos_term():
    table = torch.randn(10, HEADS, requires_grad=True)
    term = BosTerm(table)
    dense = AttentionBias(torch.zeros(HEADS, 4, 4), (term,)).dense()
    for head in range(HEADS):
        row, column, corner = table[-3:, head]
        assert (dense[head, 0, 1:] == row).all() and (dense[head, 1:, 0] == column).all() and dense[head, 0, 0] == corner
        assert not dense[head, 1:, 1:].any()
    dense.sum().backward()
    assert table.grad[-3:, 0].tolist() == [3, 3, 1] and not table.grad[:-3].any()


def test_causal_mask():
    bias = AttentionBias(torch.zeros(1, 3, 3), causal=True)
    assert not bias.dense().any()
    assert bias.masked()[0].isinf().tolist() == [[False, True, True], [False, False, True], [False, False, False]]


def test_autocast_does_not_round_the_bias():
    _, term = grid_term((6, 4), windowed=False)
    bias = AttentionBias(torch.zeros(HEADS, 24, 24), (term,))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = bias.dense()
    assert torch.equal(rounded, bias.dense())
