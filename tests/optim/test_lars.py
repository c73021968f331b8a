"""LARS against the formula written out with plain numbers, and its corner cases."""

import copy
import math

import pytest
import torch

from ofaseg.optim.lars import LARS

OPTIONS = dict(lr=0.7, momentum=0.9, weight_decay=0.05, eta=0.02, eps=1e-3)


def naive(weights, gradients_by_step, lr, momentum, weight_decay, eta, eps):
    """Weights (lists of floats, one per tensor) after the steps, number by number."""
    weights, buffers = [list(w) for w in weights], [None] * len(weights)
    for gradients in gradients_by_step:
        for t, (w, g) in enumerate(zip(weights, gradients)):
            w_norm, g_norm = math.sqrt(sum(x * x for x in w)), math.sqrt(sum(x * x for x in g))
            local = eta * w_norm / (g_norm + weight_decay * w_norm + eps) if w_norm and g_norm else 1.0
            d = [(gi + weight_decay * wi) * local * lr for gi, wi in zip(g, w)]
            buffers[t] = d if buffers[t] is None else [momentum * b + x for b, x in zip(buffers[t], d)]
            weights[t] = [wi - b for wi, b in zip(w, buffers[t])]
    return weights


def steps(optimizer, params, gradients_by_step):
    for gradients in gradients_by_step:
        for parameter, gradient in zip(params, gradients):
            parameter.grad = torch.tensor(gradient, dtype=torch.float64).view_as(parameter)
        optimizer.step()


def case(seed=0, updates=4):
    """Two tensors, one of zeros, and gradients, the second tensor's all zero at the second step."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(6, generator=generator, dtype=torch.float64).tolist(), [0.0] * 3]
    gradients = [[torch.randn(n, generator=generator, dtype=torch.float64).tolist() for n in (6, 3)] for _ in range(updates)]
    gradients[1][1] = [0.0] * 3
    params = [torch.nn.Parameter(torch.tensor(weights[0], dtype=torch.float64).view(2, 3)), torch.nn.Parameter(torch.zeros(3).double())]
    return weights, gradients, params


def test_the_formula():
    weights, gradients, params = case()
    steps(LARS(params, **OPTIONS), params, gradients)
    for parameter, expected in zip(params, naive(weights, gradients, **OPTIONS), strict=True):
        torch.testing.assert_close(parameter.detach().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_resume_is_exact():
    _, gradients, straight = case()
    _, _, stopped = case()
    steps(LARS(straight, **OPTIONS), straight, gradients)
    first = LARS(stopped, **OPTIONS)
    steps(first, stopped, gradients[:2])
    second = LARS(stopped, **OPTIONS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, stopped, gradients[2:])
    assert all(torch.equal(a, b) for a, b in zip(straight, stopped, strict=True))


def test_parameters_without_gradient_stay():
    parameter = torch.nn.Parameter(torch.ones(2))
    LARS([parameter], lr=1.0).step()
    assert parameter.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("change", [{"lr": 0.0}, {"momentum": -0.1}, {"eta": -1.0}])
def test_bad_values_are_named(change):
    with pytest.raises(ValueError, match=f"LARS: {next(iter(change))}"):
        LARS([torch.nn.Parameter(torch.ones(1))], **({"lr": 1.0} | change))
