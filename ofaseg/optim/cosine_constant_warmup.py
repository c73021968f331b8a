"""``--lr-scheduler cosine_constant_warmup``: one cosine over the whole run, its first updates at a small fixed share of it.

The schedule that FreeSeg's prompts are learned with (detectron2's WarmupCosineLR with a constant warm-up). With N updates in the run, w of
warm-up, a warm-up factor f and n updates done::

    lr(n) = lr * 0.5 * (1 + cos(pi * n / N)) * (f if n < w else 1)

From n = N on the rate is 0.
"""

import math
from dataclasses import dataclass, field

from fairseq.optim.lr_scheduler import register_lr_scheduler

from ofaseg.optim.cosine_warmup import RunLengthConfig, RunLengthSchedule


@dataclass
class CosineConstantWarmupConfig(RunLengthConfig):
    warmup_updates: int = field(default=100, metadata={"help": "w, the updates of warm-up"})
    warmup_factor: float = field(default=0.005, metadata={"help": "f, the share of the rate in them, 0..1"})


@register_lr_scheduler("cosine_constant_warmup", dataclass=CosineConstantWarmupConfig)
class CosineConstantWarmupSchedule(RunLengthSchedule):
    """The rate of the module docstring.

    Raises:
        ValueError: a list of rates, a factor outside [0, 1], a negative number of updates, or a run of unknown length.
    """

    name = "cosine_constant_warmup"

    def check(self) -> None:
        """Raises ValueError for a factor outside [0, 1], or a negative number of updates."""
        if not 0.0 <= self.cfg.warmup_factor <= 1.0:
            raise ValueError(f"--warmup-factor {self.cfg.warmup_factor}: give a number from 0 to 1")
        if self.cfg.warmup_updates < 0:
            raise ValueError(f"--warmup-updates {self.cfg.warmup_updates}: give a number from 0 on")

    def rate(self, num_updates: int) -> float:
        """lr(n) of the module docstring; the rate of the first update as long as the length is not known."""
        progress = min(num_updates / self.total, 1.0) if self.total else 0.0
        factor = self.cfg.warmup_factor if num_updates < self.cfg.warmup_updates else 1.0
        return self.max_lr * factor * 0.5 * (1.0 + math.cos(math.pi * progress))
