"""freeseg_adamw: groups of the model, one run against plain AdamW, resuming; the published schedules in closed form."""

import math

import pytest
import torch
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from omegaconf import OmegaConf

from ofaseg.optim.freeseg import FreeSegAdamW

OPTIMIZER = {"_name": "freeseg_adamw", "lr": [1e-2], "weight_decay": 0.1}


class Parts(torch.nn.Module):
    """An image encoder with a normalisation, and a head with a table that does not decay."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.norm = torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)
        self.head, self.table = torch.nn.Linear(4, 2), torch.nn.Parameter(torch.randn(5, 4))
        for parameter in (*self.encoder.parameters(), *self.norm.parameters()):
            parameter.param_group = "backbone"
        for parameter in (*self.norm.parameters(), self.table):
            parameter.no_decay = True

    def forward(self, x):
        return self.head(self.norm(self.encoder(x)) + self.table.mean(0)).square().sum()


def build(**changes):
    parts = Parts()
    return parts, build_optimizer(OmegaConf.create(OPTIMIZER | changes), list(parts.parameters()))


def steps(parts, optimizer, first, last):
    for n in range(first, last):
        optimizer.set_lr(1e-2 * (1 - n / 10) ** 0.9)
        optimizer.zero_grad()
        parts(torch.linspace(-1, 1, 6).view(2, 3) + n).backward()
        optimizer.step()


def test_groups():
    parts, optimizer = build()
    assert isinstance(optimizer, FreeSegAdamW)
    found = [([id(p) for p in group["params"]], group["weight_decay"], group["lr_scale"]) for group in optimizer.param_groups]
    assert found == [
        ([id(p) for p in parts.head.parameters()], 0.1, 1.0),
        ([id(parts.table)], 0.0, 1.0),
        ([id(p) for p in parts.encoder.parameters()], 0.1, 0.1),
        ([id(p) for p in parts.norm.parameters()], 0.0, 0.1),
    ]
    optimizer.set_lr(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.5, 0.05, 0.05]) and optimizer.get_lr() == 0.5
    vectors = build(no_decay_vectors=True)[1]
    assert [p.ndim for group in vectors.param_groups if group["weight_decay"] == 0 for p in group["params"]] == [2, 1, 1, 1, 1]


def test_a_run_is_that_of_plain_adamw():
    """With a group per tensor, as published, told its numbers from outside."""
    parts, optimizer = build()
    steps(parts, optimizer, 0, 5)
    plain = Parts()
    rates = {"encoder": 0.1, "norm": 0.1, "head": 1.0, "table": 1.0}
    groups = [
        {"params": [p], "scale": rates[name.split(".")[0]], "weight_decay": 0.1 * (name.split(".")[0] in ("encoder", "head"))}
        for name, p in plain.named_parameters()
    ]
    reference = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    for n in range(5):
        for group in reference.param_groups:
            group["lr"] = 1e-2 * (1 - n / 10) ** 0.9 * group["scale"]
        plain.zero_grad()
        plain(torch.linspace(-1, 1, 6).view(2, 3) + n).backward()
        reference.step()
    for (name, ours), theirs in zip(parts.named_parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5, msg=name)


def test_resuming():
    """Exact; another multiple given on resuming is the one that holds."""
    straight, stopped, resumed, other = build(), build(), build(), build(backbone_lr_scale=0.5)
    steps(*straight, 0, 8)
    steps(*stopped, 0, 4)
    for parts, optimizer in (resumed, other):
        parts.load_state_dict(stopped[0].state_dict())
        optimizer.load_state_dict(stopped[1].state_dict())
    assert other[1].param_groups[2]["lr"] == pytest.approx(0.5 * other[1].get_lr()) and other[1].get_lr() == stopped[1].get_lr()
    steps(*resumed, 4, 8)
    for ours, expected in zip(resumed[0].parameters(), straight[0].parameters()):
        assert torch.equal(ours, expected)


def test_what_does_not_decay_in_the_model():
    """Norms and the predictor's three tables; the encoder's level embedding, gamma, the vector of no object and prompts do decay."""
    pytest.importorskip("open_clip")
    from ofaseg.models.freeseg import FreeSeg, architecture_config

    model = FreeSeg(architecture_config("freeseg_nano"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    spared = {name for name, p in trained.items() if getattr(p, "no_decay", False)}
    tables = {"predictor.query_features", "predictor.query_positions", "predictor.level_embedding"}
    assert tables <= spared and all("norm" in name or name.endswith((".1.weight", ".1.bias")) for name in spared - tables)
    assert sum("norm" in name for name in trained) == sum("norm" in name for name in spared) > 10
    decaying = {"pixel_decoder.level_embedding", "interaction.gamma", "no_object", "prompt.class_prompt", "prompt.task_prompt"}
    assert decaying <= set(trained) - spared
    assert {name for name, p in trained.items() if getattr(p, "param_group", "") == "backbone"} == {
        name for name in trained if name.startswith("image_encoder.")
    }


def schedule_of(name, **options):
    optimizer = build_optimizer(OmegaConf.create({"_name": "torch_adamw", "lr": [1.0]}), [torch.nn.Parameter(torch.ones(1))])
    return build_lr_scheduler(OmegaConf.create({"_name": name, "lr": [1e-4], **options}), optimizer)


def test_the_polynomial_of_fairseq_is_the_published_one():
    schedule = schedule_of("polynomial_decay", power=0.9, total_num_update=60_000, warmup_updates=0, end_learning_rate=0.0, force_anneal=None)
    for n in (0, 1, 100, 30_000, 59_999):
        assert schedule.step_update(n) == pytest.approx(1e-4 * (1 - n / 60_000) ** 0.9, rel=1e-12)
    assert schedule.step_update(60_000) == 0
    assert schedule_of("polynomial_decay", power=0.9, total_num_update=9, warmup_updates=0, end_learning_rate=0.0).optimizer.get_lr() == 1e-4


LENGTH = {"max_update": 16_000, "max_epoch": 0, "update_freq": [1], "skip_remainder_batch": False}


def test_the_cosine_of_prompt_learning():
    schedule = schedule_of("cosine_constant_warmup", **LENGTH)
    for n in (0, 50, 99, 100, 101, 8000, 15_999):
        expected = 1e-4 * (0.005 if n < 100 else 1) * 0.5 * (1 + math.cos(math.pi * n / 16_000))
        assert schedule.step_update(n) == schedule.optimizer.get_lr() == pytest.approx(expected, rel=1e-12)
    assert schedule.step_update(16_000) == schedule.step_update(10**6) == 0
    epochs = schedule_of("cosine_constant_warmup", **LENGTH | {"max_update": 0, "max_epoch": 3}, warmup_updates=0)
    epochs.set_batches_per_epoch(100)
    assert epochs.total == 300 and epochs.step_update(150) == pytest.approx(5e-5)


def test_what_a_schedule_cannot_be():
    for changes, message in (
        ({"warmup_factor": 2.0}, "--warmup-factor 2.0"),
        ({"warmup_updates": -1}, "--warmup-updates -1"),
        ({"lr": [1.0, 0.1]}, "cosine_constant_warmup takes one --lr"),
        ({"max_update": 0}, "cosine_constant_warmup needs the length of the run"),
    ):
        with pytest.raises(ValueError, match=message):
            schedule_of("cosine_constant_warmup", **LENGTH | changes)
