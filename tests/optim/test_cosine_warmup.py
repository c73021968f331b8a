"""cosine_warmup_ratio: values of the formula, the length of the run, resuming."""

import math

import pytest
import torch
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from omegaconf import OmegaConf

from ofaseg.optim.cosine_warmup import CosineWarmupRatioSchedule, updates_of_run

BASE = {"_name": "cosine_warmup_ratio", "lr": [5e-5], "max_update": 0, "max_epoch": 0, "update_freq": [1], "skip_remainder_batch": False}


def build(**changes):
    optimizer = build_optimizer(OmegaConf.create({"_name": "torch_adamw", "lr": [1.0]}), [torch.nn.Parameter(torch.ones(1))])
    return build_lr_scheduler(OmegaConf.create({**BASE, **changes}), optimizer)


def test_registered():
    assert isinstance(build(max_update=5), CosineWarmupRatioSchedule)


def test_official_run():
    """IFSeg: lr(n) = 0.5 lr (1 + cos(pi n / N)), 2000 updates, no warm-up (ifseg.md, sections 5 and 6)."""
    schedule = build(max_update=2000)
    for n in (0, 1, 500, 1000, 1999, 2000):
        assert schedule.step_update(n) == pytest.approx(0.5 * 5e-5 * (1 + math.cos(math.pi * n / 2000)), abs=1e-20)
        assert schedule.optimizer.get_lr() == schedule.rate(n)


def test_no_second_cycle():
    schedule = build(max_update=10, min_lr=1e-6)
    assert [schedule.step_update(n) for n in (10, 11, 500)] == [1e-6] * 3


def test_warmup_rises_to_the_peak_and_falls_over_the_rest():
    schedule = build(max_update=100, warmup_ratio=0.1, min_lr=1e-6)
    assert schedule.rate(0) == 1e-6
    assert schedule.rate(5) == pytest.approx((1e-6 + 5e-5) / 2)
    assert schedule.rate(10) == 5e-5
    assert schedule.rate(55) == pytest.approx((1e-6 + 5e-5) / 2)
    assert schedule.rate(100) == 1e-6
    assert build(max_update=100, warmup_ratio=0.1, warmup_init_lr=1e-5).rate(0) == 1e-5


def test_explicit_length_first_then_max_update_then_epochs():
    assert build(total_num_update=7, max_update=5, max_epoch=3).total == 7
    assert build(max_update=5, max_epoch=3).total == 5
    schedule = build(max_epoch=3)
    assert schedule.rate(0) == schedule.rate(100) == 5e-5  # the length is not known yet
    schedule.set_batches_per_epoch(100)
    assert schedule.total == 300 and schedule.step_update(150) == pytest.approx(2.5e-5)


def test_announced_epochs_do_not_change_a_given_length():
    schedule = build(max_update=5, max_epoch=3)
    schedule.set_batches_per_epoch(100)
    assert schedule.total == 5


@pytest.mark.parametrize(
    "batches, max_epoch, update_freq, skip, expected",
    [(100, 20, [1], False, 2000), (7, 2, [2], False, 8), (7, 3, [1, 2], False, 7 + 4 + 4), (16, 1, [1], True, 15), (16, 2, [4], True, 6)],
)
def test_updates_of_run(batches, max_epoch, update_freq, skip, expected):
    assert updates_of_run(batches, max_epoch, update_freq, skip) == expected


def test_resume_before_the_data_is_known_has_the_right_rate():
    schedule = build(max_epoch=3)
    schedule.set_batches_per_epoch(100)
    resumed = build(max_epoch=3)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.step_update(120) == schedule.step_update(120)


def test_a_longer_run_changes_the_length_with_a_warning(caplog):
    schedule = build(max_epoch=3)
    schedule.set_batches_per_epoch(100)
    longer = build(max_epoch=4)
    longer.load_state_dict(schedule.state_dict())
    longer.set_batches_per_epoch(100)
    assert longer.total == 400 and "400 updates instead of 300" in caplog.text


def test_unknown_length_says_which_flag_to_give():
    with pytest.raises(ValueError, match="--max-epoch or --max-update"):
        build()
    with pytest.raises(ValueError, match="--max-update or --total-num-update"):
        build(max_epoch=2).step_begin_epoch(1)


@pytest.mark.parametrize(
    "changes, match", [({"lr": [1e-3, 1e-4]}, "one --lr"), ({"warmup_ratio": 1.0}, "--warmup-ratio"), ({"min_lr": 1.0}, "--min-lr")]
)
def test_bad_values_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        build(max_update=5, **changes)
