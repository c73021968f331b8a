"""Binary cross-entropy of (photo, class) pairs over their labelled pixels."""

from dataclasses import dataclass, field

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from ofaseg.losses import masked_bce


@dataclass
class MaskedBinaryCrossEntropyConfig(FairseqDataclass):
    ignored_count: bool = field(
        default=False, metadata={"help": "samples without a labelled pixel count as if they did not show their classes (as published)"}
    )
    foreground_weight: float = field(
        default=1.0, metadata={"help": "factor of the loss where the class is; above 1 small objects are found more often (published: 1)"}
    )


@register_criterion("masked_binary_cross_entropy", dataclass=MaskedBinaryCrossEntropyConfig)
class MaskedBinaryCrossEntropy(FairseqCriterion):
    """Mean over samples of their own mean over labelled pixels (Fusioner, eq. 5). The sample size is the number of samples that count, so
    the gradient is the same on any number of processes and with accumulation.

    Raises:
        ValueError: `foreground_weight` is not above 0.
    """

    def __init__(self, task, ignored_count: bool, foreground_weight: float = 1.0):
        super().__init__(task)
        if not foreground_weight > 0:
            raise ValueError(f"--foreground-weight must be above 0, not {foreground_weight}")
        self.ignored_count, self.foreground_weight = ignored_count, foreground_weight

    def forward(self, model, sample: dict, reduce: bool = True):
        """(loss, sample_size, logging_output); sums, division happens in `reduce_metrics`."""
        return self.loss(model(**sample["net_input"]).class_logits, sample["target"])

    def loss(self, class_logits: Tensor, target: Tensor):
        """As `forward`, from logits (B, K, h, w) and a target (B, K, h, w)."""
        losses, counted = masked_bce(class_logits, target.to(class_logits.device), self.ignored_count, self.foreground_weight)
        loss, samples = losses.sum(), counted.sum()
        log = {"loss": loss.detach(), "sample_size": samples, "nsentences": len(target), "ntokens": len(target)}
        return loss, samples, log

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        samples = float(sum(log.get("sample_size", 0) for log in logging_outputs))
        if samples:
            total = float(sum(torch.as_tensor(log.get("loss", 0)).cpu() for log in logging_outputs))
            metrics.log_scalar("loss", total / samples, samples, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
