"""``--optimizer fusioner_adamw --lr-scheduler fusioner_cosine``: how Fusioner is trained.

AdamW in three groups: matrices of the fusion, whose weight decay is scheduled; its biases and norms, without decay; the decoder, at
a learning rate of its own that never changes and without decay. With w updates of warm-up, N in the whole run and n done::

    n < w:   lr(n) = lr * n / (w - 1)
    n >= w:  lr(n) = min_lr + 0.5 * (lr - min_lr) * (1 + cos(pi * (n - w) / (N - w)))
             decay(n) = decay_end + 0.5 * (decay - decay_end) * (1 + cos(pi * n / N))

From n = N on both stay at their last values. The first update leaves the fusion as it is.
"""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import List

from fairseq.dataclass import FairseqDataclass
from fairseq.optim import register_optimizer
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from ofaseg.optim.adamw import TorchAdamW, TorchAdamWConfig, decay_groups
from ofaseg.optim.cosine_warmup import updates_of_run

logger = logging.getLogger(__name__)

DECODER = "decoder"
"""What `param_group` of a parameter says when it belongs to the decoder."""
FIXED_RATE, SCHEDULED_DECAY = "fixed_rate", "scheduled_decay"
"""Marks of optimizer groups."""


def schedule(n: int, warmup: int, total: int, rates: tuple[float, float], decays: tuple[float, float]) -> tuple[float, float]:
    """(learning rate, weight decay) after n updates; `rates` and `decays` are the (first or highest, last) of each."""
    n = min(n, max(total - 1, 0))
    decay = _cosine(decays[0], decays[1], n / max(total, 1))
    if n < warmup:
        return rates[0] * n / max(warmup - 1, 1), decay
    return _cosine(rates[0], rates[1], (n - warmup) / max(total - warmup, 1)), decay


def _cosine(start: float, end: float, progress: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


@dataclass
class FusionerAdamWConfig(TorchAdamWConfig):
    decoder_lr: float = field(default=1e-3, metadata={"help": "learning rate of the decoder; it never changes"})


@register_optimizer("fusioner_adamw", dataclass=FusionerAdamWConfig)
class FusionerAdamW(TorchAdamW):
    """`torch_adamw` with groups of their own for fusion and decoder (`param_group` of each parameter)."""

    def groups(self, params: list) -> list[dict]:
        """Matrices, vectors, decoder; empty ones are left out."""
        fusion = decay_groups([p for p in params if getattr(p, "param_group", "") != DECODER])
        fusion = [group | {SCHEDULED_DECAY: "weight_decay" not in group, FIXED_RATE: False} for group in fusion]
        decoder = [p for p in params if getattr(p, "param_group", "") == DECODER]
        fixed = {"params": decoder, "lr": self.cfg.decoder_lr, "weight_decay": 0.0, SCHEDULED_DECAY: False, FIXED_RATE: True}
        return fusion + ([fixed] if decoder else [])

    def set_lr(self, lr: float) -> None:
        """Sets the rate of the groups that have no fixed one."""
        for group in self.param_groups:
            group["lr"] = self.cfg.decoder_lr if group.get(FIXED_RATE) else lr

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """As `TorchAdamW.load_state_dict`; the decoder's rate stays this run's."""
        super().load_state_dict(state_dict, optimizer_overrides)
        self.set_lr(self.get_lr())

    def get_lr(self) -> float:
        """The fusion's rate, or the decoder's where there is nothing else."""
        rates = [group["lr"] for group in self.param_groups if not group.get(FIXED_RATE)]
        return rates[0] if rates else self.param_groups[0]["lr"]

    @property
    def supports_flat_params(self) -> bool:
        return False  # one flat tensor has no groups: --fp16-no-flatten-grads


@dataclass
class FusionerCosineConfig(FairseqDataclass):
    warmup_epochs: int = field(default=10, metadata={"help": "epochs in which the fusion's rate rises from 0"})
    warmup_num_update: int = field(default=0, metadata={"help": "w, the updates of warm-up; 0: --warmup-epochs times updates per epoch"})
    min_lr: float = field(default=2e-6, metadata={"help": "the fusion's rate at the end of the run"})
    total_num_update: int = field(
        default=0, metadata={"help": "N, the updates of the whole run; 0: --max-update, else --max-epoch times updates per epoch"}
    )
    scheduled_weight_decay: float = field(default=0.01, metadata={"help": "weight decay of the fusion's matrices at the start"})
    final_weight_decay: float = field(default=0.4, metadata={"help": "and at the end of the run"})
    lr: List[float] = II("optimization.lr")
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")
    update_freq: List[int] = II("optimization.update_freq")
    skip_remainder_batch: bool = II("optimization.skip_remainder_batch")


@register_lr_scheduler("fusioner_cosine", dataclass=FusionerCosineConfig)
class FusionerCosineSchedule(FairseqLRScheduler):
    """Rate and weight decay of the module docstring, for the optimizer `fusioner_adamw`.

    Raises:
        ValueError: a list of rates, a minimum above the peak, a run of unknown length, or an optimizer without such groups.
    """

    def __init__(self, cfg: FusionerCosineConfig, optimizer):
        super().__init__(cfg, optimizer)
        rates = list(cfg.lr) if isinstance(cfg.lr, Collection) else [cfg.lr]
        if len(rates) != 1 or cfg.min_lr > rates[0]:
            raise ValueError(f"fusioner_cosine takes one --lr, no less than --min-lr {cfg.min_lr}; got {rates}")
        if not any(group.get(SCHEDULED_DECAY) is not None for group in optimizer.param_groups):
            raise ValueError("fusioner_cosine schedules groups that only --optimizer fusioner_adamw makes")
        self.rates, self.decays = (rates[0], cfg.min_lr), (cfg.scheduled_weight_decay, cfg.final_weight_decay)
        self.total, self.warmup = max(cfg.total_num_update, cfg.max_update, 0) or None, max(cfg.warmup_num_update, 0) or None
        if cfg.total_num_update > 0:
            self.total = cfg.total_num_update
        if self.total is None and cfg.max_epoch <= 0:
            raise ValueError("fusioner_cosine needs the length of the run: give --max-epoch or --max-update (or --total-num-update)")
        if cfg.warmup_epochs <= 0 and self.warmup is None:
            self.warmup = 0
        self.step_update(0)

    def set_batches_per_epoch(self, batches: int) -> None:
        """Told by the trainer once it knows its training data; settles what was given in epochs."""
        cfg, freq = self.cfg, list(self.cfg.update_freq)
        if cfg.total_num_update <= 0 and cfg.max_update <= 0:
            self.total = updates_of_run(batches, cfg.max_epoch, freq, cfg.skip_remainder_batch)
        if cfg.warmup_num_update <= 0 and cfg.warmup_epochs > 0:
            self.warmup = updates_of_run(batches, cfg.warmup_epochs, freq, cfg.skip_remainder_batch)
        if self.total is not None and (self.warmup or 0) >= self.total:
            problem = f"the warm-up of {self.warmup} updates does not end in a run of {self.total}: the rate never reaches --lr nor falls"
            logger.warning("fusioner_cosine: %s; give a shorter --warmup-epochs or --warmup-num-update", problem)

    def step_begin_epoch(self, epoch: int) -> None:
        if self.total is None or self.warmup is None:
            raise ValueError(
                "fusioner_cosine does not know how many updates an epoch has (fairseq patch P6 is off, or the data is a stream): "
                "give --total-num-update and --warmup-num-update"
            )

    def step_update(self, num_updates: int) -> float:
        """Sets rate and weight decay for the update after `num_updates` updates; returns the rate."""
        if self.total is None or self.warmup is None:  # before the first epoch, where nothing is updated yet
            return self.optimizer.get_lr()
        lr, decay = schedule(num_updates, self.warmup, self.total, self.rates, self.decays)
        self.optimizer.set_lr(lr)
        for group in self.optimizer.param_groups:
            if group.get(SCHEDULED_DECAY):
                group["weight_decay"] = decay
        return lr

    def state_dict(self) -> dict:
        return {**super().state_dict(), "total": self.total, "warmup": self.warmup}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes the lengths from the checkpoint until the trainer announces its data; explicit flags win over both."""
        super().load_state_dict(state_dict)
        self.total = state_dict.get("total") if self.total is None else self.total
        self.warmup = state_dict.get("warmup") if self.warmup is None else self.warmup
