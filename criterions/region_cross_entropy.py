"""Cross-entropy of regions and the texts of classes (FreeSeg, prompt learning)."""

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor


@register_criterion("region_cross_entropy", dataclass=FairseqDataclass)
class RegionCrossEntropy(FairseqCriterion):
    """Sum over regions; the sample size is their number, so the gradient is the same on any number of processes and with accumulation."""

    def forward(self, model, sample: dict, reduce: bool = True):
        """(loss, sample_size, logging_output); sums, division happens in `reduce_metrics`.

        Args:
            sample: with `net_input` and `target` (B,) long, columns of the model's logits.
        """
        return self.loss(model(**sample["net_input"]), sample["target"])

    def loss(self, class_logits: Tensor, target: Tensor):
        """As `forward`, from logits (B, K)."""
        loss = F.cross_entropy(class_logits.float(), target, reduction="sum")
        regions = len(target)
        return loss, regions, {"loss": loss.detach(), "sample_size": regions, "nsentences": regions, "ntokens": regions}

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        regions = sum(int(log.get("sample_size", 0)) for log in logging_outputs)
        if regions:
            total = sum(torch.as_tensor(log["loss"]).float() for log in logging_outputs if "loss" in log)
            metrics.log_scalar("loss", float(total) / regions, regions, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
