"""The feed-forward half that recomputes its activations."""

import torch
import torch.nn.functional as F
from torch import nn

from ofaseg.models.ofa.recompute import gelu_norm_linear


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
