"""Dropout with a bit mask, and the feed-forward half that recomputes its activations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ofaseg.models.ofa.recompute import dropout, gelu_norm_linear


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout(rate):
    x = torch.ones(3, 101, 337, requires_grad=True)
    y = dropout(x, rate)
    kept = y != 0
    assert abs(kept.float().mean().item() - (1 - rate)) < 0.01
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - rate)))
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_is_seeded():
    x = torch.ones(50)
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results.append(dropout(x, 0.5))
    assert torch.equal(*results) and not torch.equal(results[0], dropout(x, 0.5))


def test_no_dropout():
    x = torch.ones(5)
    assert dropout(x, 0.0) is x


def test_feed_forward_half():
    norm, linear = nn.LayerNorm(12), nn.Linear(12, 5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    hidden = torch.randn(2, 7, 12, requires_grad=True)
    given = [hidden, *norm.parameters(), *linear.parameters()]
    ours, expected = gelu_norm_linear(hidden, norm, linear), linear(norm(F.gelu(hidden)))
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(expected)
    for mine, theirs in zip(torch.autograd.grad((ours * weights).sum(), given), torch.autograd.grad((expected * weights).sum(), given)):
        torch.testing.assert_close(mine, theirs)


def test_feed_forward_half_under_autocast():
    norm, linear, hidden = nn.LayerNorm(12), nn.Linear(12, 5), torch.randn(2, 7, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = gelu_norm_linear(hidden, norm, linear)
    y.float().sum().backward()
    assert hidden.grad is not None
