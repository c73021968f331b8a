"""fusioner_adamw and fusioner_cosine: groups, rates and decays by hand, one step against plain Adam, resuming."""

import math

import pytest
import torch
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from omegaconf import OmegaConf

from ofaseg.optim.fusioner import FusionerAdamW, schedule

OPTIMIZER = {"_name": "fusioner_adamw", "lr": [1e-3], "decoder_lr": 2e-3}
SCHEDULE = {"_name": "fusioner_cosine", "lr": [1e-3], "max_update": 0, "max_epoch": 510, "update_freq": [1], "skip_remainder_batch": False}


class Parts(torch.nn.Module):
    """A fusion with a matrix, a bias and a token table, and a decoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fusion, self.table = torch.nn.Linear(3, 4), torch.nn.Parameter(torch.randn(1, 4))
        self.decoder = torch.nn.Linear(4, 2)
        for parameter in self.decoder.parameters():
            parameter.param_group = "decoder"

    def forward(self, x):
        return self.decoder(self.fusion(x) + self.table).square().sum()


def build(parts=None, **changes):
    parts = parts or Parts()
    optimizer = build_optimizer(OmegaConf.create({**OPTIMIZER}), list(parts.parameters()))
    return parts, optimizer, build_lr_scheduler(OmegaConf.create({**SCHEDULE, **changes}), optimizer)


def test_groups():
    parts, optimizer, _ = build()
    assert isinstance(optimizer, FusionerAdamW)
    matrices, vectors, decoder = optimizer.param_groups
    assert [id(p) for p in matrices["params"]] == [id(parts.table), id(parts.fusion.weight)]
    assert [id(p) for p in vectors["params"]] == [id(parts.fusion.bias)] and vectors["weight_decay"] == 0.0
    assert [id(p) for p in decoder["params"]] == [id(parts.decoder.weight), id(parts.decoder.bias)]
    assert decoder["weight_decay"] == 0.0 and decoder["lr"] == 2e-3


def test_rates_and_decays():
    """Section 8 of the digest: warm-up over w - 1 steps, cosine to the minimum, decay over the whole run; the decoder stays."""
    _, optimizer, scheduler = build()
    scheduler.set_batches_per_epoch(7)
    assert (scheduler.warmup, scheduler.total) == (70, 3570)
    matrices, vectors, decoder = optimizer.param_groups
    for n, rate in ((0, 0.0), (1, 1e-3 / 69), (69, 1e-3), (70, 1e-3), (1820, 2e-6 + 0.5 * (1e-3 - 2e-6)), (3569, 2e-6)):
        assert scheduler.step_update(n) == pytest.approx(rate, rel=1e-3, abs=1e-12)
        assert matrices["lr"] == vectors["lr"] == optimizer.get_lr() and decoder["lr"] == 2e-3
        decay = 0.4 + 0.5 * (0.01 - 0.4) * (1 + math.cos(math.pi * n / 3570))
        assert matrices["weight_decay"] == pytest.approx(decay) and vectors["weight_decay"] == decoder["weight_decay"] == 0.0
    assert scheduler.step_update(10**6) == scheduler.step_update(3569) > 2e-6  # past the end nothing changes any more


def test_short_runs():
    assert schedule(0, 1, 4, (1.0, 0.0), (0.0, 1.0)) == (0.0, 0.0)
    assert schedule(0, 0, 4, (1.0, 0.0), (0.0, 1.0)) == (1.0, 0.0)
    rate, decay = schedule(2, 0, 4, (1.0, 0.0), (0.0, 1.0))
    assert rate == pytest.approx(0.5) and decay == pytest.approx(0.5)
    _, _, scheduler = build(max_update=20, warmup_num_update=5)
    assert scheduler.step_update(4) == pytest.approx(1e-3) and scheduler.total == 20
    scheduler.set_batches_per_epoch(7)
    assert (scheduler.total, scheduler.warmup) == (20, 5)
    _, _, scheduler = build(total_num_update=30, max_update=20, warmup_epochs=0)
    scheduler.step_begin_epoch(1)
    assert (scheduler.total, scheduler.warmup) == (30, 0) and scheduler.step_update(0) == 1e-3


def test_a_warm_up_that_does_not_end_is_told(caplog):
    _, _, scheduler = build(max_epoch=5, warmup_epochs=10)
    scheduler.set_batches_per_epoch(7)
    assert "the warm-up of 70 updates does not end in a run of 35" in caplog.text


def test_what_cannot_be():
    for changes, message in (
        ({"max_epoch": 0}, "needs the length of the run"),
        ({"lr": [1e-3, 1e-4]}, "takes one --lr"),
        ({"min_lr": 1.0}, "no less than --min-lr"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**changes)
    _, _, scheduler = build()
    with pytest.raises(ValueError, match="how many updates an epoch has"):
        scheduler.step_begin_epoch(1)
    plain = build_optimizer(OmegaConf.create({"_name": "torch_adamw", "lr": [1e-3]}), [torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="only --optimizer fusioner_adamw makes"):
        build_lr_scheduler(OmegaConf.create(SCHEDULE), plain)


def steps(parts, optimizer, scheduler, first, last):
    for n in range(first, last):
        scheduler.step_update(n)
        optimizer.zero_grad()
        parts(torch.linspace(-1, 1, 6).view(2, 3) + n).backward()
        optimizer.step()


def test_a_run_is_that_of_two_plain_optimizers():
    """Adam for the decoder and AdamW for the fusion, as published, each told its numbers from outside."""
    parts, optimizer, scheduler = build(total_num_update=6, warmup_num_update=3)
    steps(parts, optimizer, scheduler, 0, 6)
    plain = Parts()
    fusion = torch.optim.AdamW(
        [{"params": [plain.fusion.weight, plain.table]}, {"params": [plain.fusion.bias], "weight_decay": 0.0}], lr=0.0
    )
    decoder = torch.optim.Adam(plain.decoder.parameters(), lr=2e-3)
    for n in range(6):
        rate, decay = schedule(n, 3, 6, (1e-3, 2e-6), (0.01, 0.4))
        fusion.param_groups[0].update(lr=rate, weight_decay=decay)
        fusion.param_groups[1].update(lr=rate)
        plain.zero_grad()
        plain(torch.linspace(-1, 1, 6).view(2, 3) + n).backward()
        fusion.step()
        decoder.step()
    for (name, ours), theirs in zip(parts.named_parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5, msg=name)
    start = Parts()
    assert not torch.equal(parts.fusion.weight, start.fusion.weight)


def test_the_first_step_leaves_the_fusion_alone():
    parts, optimizer, scheduler = build(total_num_update=6, warmup_num_update=3)
    steps(parts, optimizer, scheduler, 0, 1)
    start = Parts()
    assert torch.equal(parts.fusion.weight, start.fusion.weight) and not torch.equal(parts.decoder.weight, start.decoder.weight)


def test_resuming():
    straight = build(total_num_update=8, warmup_num_update=3)
    steps(*straight, 0, 8)
    stopped = build(total_num_update=8, warmup_num_update=3)
    steps(*stopped, 0, 4)
    resumed = build(total_num_update=8, warmup_num_update=3)
    resumed[0].load_state_dict(stopped[0].state_dict())
    resumed[1].load_state_dict(stopped[1].state_dict())
    resumed[2].load_state_dict(stopped[2].state_dict())
    assert resumed[1].param_groups[2]["lr"] == 2e-3
    steps(*resumed, 4, 8)
    for ours, expected in zip(resumed[0].parameters(), straight[0].parameters()):
        assert torch.equal(ours, expected)


def test_lengths_come_from_the_checkpoint_until_the_data_is_known():
    _, _, scheduler = build()
    scheduler.load_state_dict({"total": 100, "warmup": 10, "best": None})
    assert scheduler.step_update(9) == pytest.approx(1e-3)
    scheduler.set_batches_per_epoch(2)
    assert (scheduler.total, scheduler.warmup) == (1020, 20)
