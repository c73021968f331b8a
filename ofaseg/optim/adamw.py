"""``--optimizer torch_adamw``: torch's own AdamW with one kernel per step instead of a Python loop over parameters.

The update is that of fairseq's ``adam`` (decoupled weight decay, as the official IFSeg scripts use it), and it takes the
same flags; only eps stands after the bias correction instead of before it. ``--zero1`` shares the optimizer state out
over the processes of the job.
"""

import ast
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import List

import torch
import torch.distributed as dist
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

logger = logging.getLogger(__name__)


@dataclass
class TorchAdamWConfig(FairseqDataclass):
    adam_betas: str = field(default="(0.9, 0.999)", metadata={"help": "betas of the running averages, e.g. '(0.9, 0.98)'"})
    adam_eps: float = field(default=1e-8, metadata={"help": "epsilon added to the denominator"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay, multiplied by the learning rate"})
    no_decay_vectors: bool = field(
        default=False, metadata={"help": "no weight decay on scalars and vectors: biases, norms, temperature (tables still decay)"}
    )
    zero1: bool = field(default=False, metadata={"help": "ZeRO stage 1: each process keeps the state of a part of the parameters"})
    lr: List[float] = II("optimization.lr")


def parse_betas(text) -> tuple:
    """``"(0.9, 0.98)"`` or a pair of numbers -> two floats in [0, 1).

    Raises:
        ValueError: anything else, naming the offending value.
    """
    try:
        values = ast.literal_eval(text) if isinstance(text, str) else tuple(text)
        betas = tuple(float(value) for value in values)
    except (ValueError, SyntaxError, TypeError):
        betas = ()
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"--adam-betas {text!r}: give two numbers from 0 up to, not including, 1, e.g. '(0.9, 0.999)'")
    return betas


def decay_groups(parameters: list) -> list[dict]:
    """Two groups, empty ones left out: matrices and tables, which decay, and tensors of at most one dimension, which do not."""
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _count_versions(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    """After a step: fused kernels and the broadcasts of ZeRO change weights without telling autograd, on which caches rely."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            torch.autograd.graph.increment_version(parameter)  # one by one: older torch takes no list


def _fusable(parameters: list) -> bool:
    """Whether torch has a fused kernel for these tensors (floating point, on CPU or CUDA)."""
    return all(torch.is_floating_point(p) and p.device.type in ("cpu", "cuda") for p in parameters)


@register_optimizer("torch_adamw", dataclass=TorchAdamWConfig)
class TorchAdamW(FairseqOptimizer):
    """torch.optim.AdamW: fused where torch can (CPU and CUDA), else its own choice of implementation."""

    def __init__(self, cfg: TorchAdamWConfig, params):
        super().__init__(cfg)
        params = list(params)
        self._implementation = {"fused": True} if _fusable(params) else {"foreach": None}
        options = {**self.optimizer_config, **self._implementation}
        params = self.groups(params)
        if cfg.zero1 and dist.is_initialized() and dist.get_world_size() > 1:
            from torch.distributed.optim import ZeroRedundancyOptimizer  # a second that only sharing processes pay

            self._optimizer = ZeroRedundancyOptimizer(params, optimizer_class=torch.optim.AdamW, **options)
        else:
            if cfg.zero1:
                logger.info("--zero1 has nothing to share out in a single process: plain AdamW")
            self._optimizer = torch.optim.AdamW(params, **options)
        self._optimizer.register_step_post_hook(_count_versions)

    def groups(self, params: list) -> list:
        """What torch's optimizer gets: tensors, or groups of them with options of their own."""
        return decay_groups(params) if self.cfg.no_decay_vectors else params

    @property
    def optimizer_config(self) -> dict:
        """Arguments of torch.optim.AdamW from this run's configuration."""
        lr = self.cfg.lr[0] if isinstance(self.cfg.lr, Collection) else self.cfg.lr
        return {
            "lr": lr,
            "betas": parse_betas(self.cfg.adam_betas),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """Loads running averages and step counts; betas, eps, weight decay and the kernel stay those of this run.

        A checkpoint written on a GPU so resumes on a CPU and the other way round, with or without ``--zero1``.

        Raises:
            ValueError: the checkpoint was written with the other choice of --no-decay-vectors, which orders parameters in another way.
        """
        saved, present = state_dict["param_groups"], self._optimizer.param_groups
        if [len(group["params"]) for group in saved] != [len(group["params"]) for group in present]:
            raise ValueError("the checkpoint groups its parameters otherwise; resume with the same model and --no-decay-vectors as before")
        own = {name: value for name, value in self.optimizer_config.items() if name not in ("lr", "weight_decay")}
        own.update({"fused": None, "foreach": None, "capturable": False}, **self._implementation)
        groups = [{**group, **own, "weight_decay": now["weight_decay"]} for group, now in zip(saved, present)]
        super().load_state_dict({**state_dict, "param_groups": groups}, optimizer_overrides)

    @property
    def supports_flat_params(self) -> bool:
        return True
