"""``--lr-scheduler cosine_warmup_ratio``: one cosine from the peak to the end of the run, warm-up given as a share of it.

The schedule of the official IFSeg scripts. With N updates in the run, w = floor(warmup_ratio * N) and n the number of
updates done::

    n < w:   lr(n) = warmup_init_lr + (lr - warmup_init_lr) * n / w
    n >= w:  lr(n) = min_lr + 0.5 * (lr - min_lr) * (1 + cos(pi * (n - w) / (N - w)))

From n = N on the rate stays at ``min_lr``: there is no second cycle, unlike fairseq's ``cosine``.
"""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import List

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

logger = logging.getLogger(__name__)


@dataclass
class RunLengthConfig(FairseqDataclass):
    total_num_update: int = field(
        default=0, metadata={"help": "N, the updates of the whole run; 0: --max-update, else --max-epoch times updates per epoch"}
    )
    lr: List[float] = II("optimization.lr")
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")
    update_freq: List[int] = II("optimization.update_freq")
    skip_remainder_batch: bool = II("optimization.skip_remainder_batch")


@dataclass
class CosineWarmupRatioConfig(RunLengthConfig):
    warmup_ratio: float = field(default=0.0, metadata={"help": "share of the run in which the rate rises linearly, 0 up to below 1"})
    warmup_init_lr: float = field(default=-1.0, metadata={"help": "rate of the first warm-up update; negative: min_lr"})
    min_lr: float = field(default=0.0, metadata={"help": "rate at the end of the run"})


def updates_of_run(batches_per_epoch: int, max_epoch: int, update_freq: list, skip_remainder_batch: bool = False) -> int:
    """Updates that fairseq makes in ``max_epoch`` epochs of ``batches_per_epoch`` batches (per process).

    Epoch e groups ``update_freq[e]`` batches into an update (the last entry holds for all later epochs). With
    ``skip_remainder_batch`` fairseq leaves out the last batch of the epoch and then an incomplete group.
    """
    per_epoch = [update_freq[min(epoch, len(update_freq) - 1)] for epoch in range(max_epoch)]
    if skip_remainder_batch:
        return sum((batches_per_epoch - 1) // freq for freq in per_epoch)
    return sum(-(-batches_per_epoch // freq) for freq in per_epoch)


class RunLengthSchedule(FairseqLRScheduler):
    """Base of schedules over the real number of updates of the run; a sub-class has `name` and implements `rate`.

    Attributes:
        max_lr: the peak.
        total: N, None as long as it is not known.

    Raises:
        ValueError: a list of rates, or a run of unknown length.
    """

    name: str

    def __init__(self, cfg: RunLengthConfig, optimizer):
        super().__init__(cfg, optimizer)
        rates = list(cfg.lr) if isinstance(cfg.lr, Collection) else [cfg.lr]
        if len(rates) != 1:
            raise ValueError(f"{self.name} takes one --lr, got {rates}; a rate per epoch needs --lr-scheduler fixed")
        self.max_lr = rates[0]
        self.total = max(cfg.total_num_update, 0) or max(cfg.max_update, 0) or None
        if self.total is None and cfg.max_epoch <= 0:
            raise ValueError(f"{self.name} needs the length of the run: give --max-epoch or --max-update (or --total-num-update)")
        self.check()
        self.step_update(0)

    def check(self) -> None:
        """Raises ValueError for options of a schedule's own that cannot be."""

    def rate(self, num_updates: int) -> float:
        """The rate for the update after `num_updates` updates; that of the first one as long as the length is not known."""
        raise NotImplementedError

    def set_batches_per_epoch(self, batches: int) -> None:
        """Told by the trainer once it knows its training data; settles N where only ``--max-epoch`` was given."""
        cfg = self.cfg
        if cfg.total_num_update > 0 or cfg.max_update > 0:
            return
        total = updates_of_run(batches, cfg.max_epoch, list(cfg.update_freq), cfg.skip_remainder_batch)
        if self.total is not None and total != self.total:
            logger.warning("the run now has %d updates instead of %d: the schedule changes its length", total, self.total)
        self.total = total

    def step_begin_epoch(self, epoch: int) -> None:
        if self.total is None:
            raise ValueError(
                f"{self.name} does not know how many updates an epoch has "
                "(fairseq patch P6 is off, or the data is a stream): give --max-update or --total-num-update"
            )

    def step_update(self, num_updates: int) -> float:
        """Sets and returns the rate for the update after ``num_updates`` updates."""
        lr = self.rate(num_updates)
        self.optimizer.set_lr(lr)
        return lr

    def state_dict(self) -> dict:
        return {**super().state_dict(), "total": self.total}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes the length from the checkpoint until the trainer announces its data; explicit flags win over both."""
        super().load_state_dict(state_dict)
        if self.total is None:
            self.total = state_dict.get("total")


@register_lr_scheduler("cosine_warmup_ratio", dataclass=CosineWarmupRatioConfig)
class CosineWarmupRatioSchedule(RunLengthSchedule):
    """Cosine over the real number of updates of the run.

    Raises:
        ValueError: a list of rates, a ratio outside [0, 1), a minimum above the peak, or a run of unknown length.
    """

    name = "cosine_warmup_ratio"

    def check(self) -> None:
        """Raises ValueError for a ratio outside [0, 1) or a minimum above the peak."""
        cfg = self.cfg
        if not 0.0 <= cfg.warmup_ratio < 1.0:
            raise ValueError(f"--warmup-ratio {cfg.warmup_ratio}: give a number from 0 up to, not including, 1")
        if cfg.min_lr > self.max_lr:
            raise ValueError(f"--min-lr {cfg.min_lr} is above --lr {self.max_lr}")
        self.warmup_init_lr = cfg.min_lr if cfg.warmup_init_lr < 0 else cfg.warmup_init_lr

    def rate(self, num_updates: int) -> float:
        """lr(n) of the module docstring; the rate of the first update as long as the length is not known."""
        if self.total is None:
            return self.warmup_init_lr if self.cfg.warmup_ratio > 0 else self.max_lr
        warmup = int(self.cfg.warmup_ratio * self.total)
        if num_updates < warmup:
            return self.warmup_init_lr + (self.max_lr - self.warmup_init_lr) * num_updates / warmup
        progress = min((num_updates - warmup) / max(self.total - warmup, 1), 1.0)
        return self.cfg.min_lr + 0.5 * (self.max_lr - self.cfg.min_lr) * (1.0 + math.cos(math.pi * progress))
