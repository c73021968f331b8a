"""Dropout with a bit mask."""

import pytest
import torch

from ofaseg.models.layers.dropout import Dropout, ShareDropout, dropout, relu_dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout(rate):
    x = torch.ones(3, 101, 337, requires_grad=True)
    y = dropout(x, rate)
    kept = y != 0
    assert abs(kept.float().mean().item() - (1 - rate)) < 0.01
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - rate)))
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_element_is_dropped_or_scaled_once(dtype):
    x = torch.randn(7, 33, 5, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(0, 1).requires_grad_()
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = dropout(x, 0.3)
    y.backward(grad)
    kept = y != 0
    assert y.dtype == dtype and 0 < kept.sum() < y.numel()
    assert torch.equal(y, (x * (1 / 0.7)).where(kept, torch.zeros(()).to(dtype)))
    assert torch.equal(x.grad, (grad * (1 / 0.7)).where(kept, torch.zeros(()).to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("what", ["relu", "shares"])
def test_with_what_comes_before_it_is_the_same(what, rate, dtype):
    """Same random numbers, values and gradients as one after the other, in any layout."""
    x = torch.randn(6, 9, 70, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(0, 1).requires_grad_()
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = torch.relu if what == "relu" else lambda x: x.softmax(-1)
    together = relu_dropout if what == "relu" else lambda x, rate: ShareDropout(rate)(before(x))
    results = []
    for form in (together, lambda x, rate: dropout(before(x), rate)):
        torch.manual_seed(2)
        y = form(x, rate)
        results.append((y, *torch.autograd.grad(y, x, grad), torch.rand(1)))
    for found, expected in zip(*results):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert ShareDropout(rate).eval()(x) is x


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


def test_module():
    x, module = torch.ones(1000), Dropout(0.5)
    assert (module(x) == 0).any() and module.eval()(x) is x
