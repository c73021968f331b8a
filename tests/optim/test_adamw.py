"""torch_adamw: the update of fairseq's adam, its flags and its checkpoints."""

import copy

import pytest
import torch
from fairseq.optim import build_optimizer
from omegaconf import OmegaConf

from ofaseg.optim.adamw import TorchAdamW, parse_betas

BASE = {"_name": "torch_adamw", "lr": [0.1], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-6, "weight_decay": 0.1}


def build(parameters, **changes):
    return build_optimizer(OmegaConf.create({**BASE, **changes}), parameters)


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (7,), ())]


def step(optimizer, params, updates, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        for parameter in params:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_registered():
    assert isinstance(build(parameters()), TorchAdamW)
    assert build(parameters()).optimizer.defaults["betas"] == (0.9, 0.98)


def test_same_update_as_fairseq_adam():
    """With the official eps; fairseq adds eps before the bias correction, so a large eps would show."""
    ours, theirs = parameters(), parameters()
    official = {**BASE, "adam_eps": 1e-8}
    step(build(ours, **official), ours, 5)
    step(build_optimizer(OmegaConf.create({**official, "_name": "adam", "fp16_adam_stats": False, "tpu": False}), theirs), theirs, 5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_steps_are_counted_by_autograd():
    """Caches of what is made from weights look at the counter."""
    params = parameters()
    optimizer = build(params)
    before = [parameter._version for parameter in params]
    step(optimizer, params, 1)
    assert all(parameter._version > version for parameter, version in zip(params, before, strict=True))


def test_parameters_without_gradient_stay():
    params = parameters()
    before = params[1].clone()
    optimizer = build(params)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert torch.equal(params[1], before)


def test_resume_is_exact():
    straight, stopped = parameters(), parameters()
    optimizer = build(straight)
    step(optimizer, straight, 3)
    first = build(stopped)
    step(first, stopped, 3)
    saved = copy.deepcopy(first.state_dict())
    second = build(stopped)
    second.load_state_dict(saved)
    step(optimizer, straight, 4, seed=2)
    step(second, stopped, 4, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(straight, stopped, strict=True))


def test_this_runs_flags_win_over_the_checkpoint():
    params = parameters()
    optimizer = build(params)
    step(optimizer, params, 1)
    saved = optimizer.state_dict()
    saved["param_groups"][0].update(fused=None, foreach=True, capturable=True, lr=0.025)  # as if written elsewhere
    resumed = build(params, weight_decay=0.3)
    resumed.load_state_dict(saved)
    group = resumed.param_groups[0]
    assert group["weight_decay"] == 0.3 and group["fused"] is True and group["foreach"] is None and group["capturable"] is False
    assert resumed.get_lr() == 0.025  # the schedule sets it before the next update
    step(resumed, params, 1)


def test_other_dtypes_than_floats_are_not_fused():
    complex_parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    assert build([complex_parameter]).optimizer.defaults["fused"] is None


def test_vectors_can_be_spared_from_decay():
    """Without gradient of its own, a decayed tensor shrinks by 1 - lr * weight_decay per update, another one stays."""
    params = parameters()
    before = [parameter.detach().clone() for parameter in params]
    optimizer = build(params, no_decay_vectors=True)
    for parameter in params:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(params[0], before[0] * (1 - 0.1 * 0.1))
    assert torch.equal(params[1], before[1]) and torch.equal(params[2], before[2])
    resumed = build(params, no_decay_vectors=True, weight_decay=0.3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.3, 0.0]
    with pytest.raises(ValueError, match="--no-decay-vectors as before"):
        build(params).load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_zero1_in_one_process_is_adamw():
    assert isinstance(build(parameters(), zero1=True).optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("text", ["0.9", "(0.9,)", "(0.9, 1.0)", "(0.9, 'x')", "__import__('os')", "(0.9, -0.1)", ""])
def test_bad_betas_are_named(text):
    with pytest.raises(ValueError, match="--adam-betas"):
        parse_betas(text)
