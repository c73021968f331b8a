"""Cross-entropy of class logits against label maps, at the label maps' resolution."""

from dataclasses import dataclass, field

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from ofaseg.losses import upsampled_cross_entropy
from ofaseg.structures import DenseOutput
from ofaseg.vocabulary import IGNORE_INDEX


@dataclass
class SegTokenCrossEntropyConfig(FairseqDataclass):
    label_smoothing: float = field(default=0.0, metadata={"help": "epsilon of label smoothing, 0..1 (torch's semantics)"})


@register_criterion("seg_token_cross_entropy", dataclass=SegTokenCrossEntropyConfig)
class SegTokenCrossEntropy(FairseqCriterion):
    """CE of seg tokens: patch logits upsampled bilinearly to the target, averaged over labelled pixels (IFSeg eq. 4).

    The sample size is the labelled area in images (labelled pixels / pixels per image), kept on the device. The gradient
    is therefore the mean over all labelled pixels of all ranks and accumulation steps, and any split of a batch over
    ranks gives the same update.
    """

    def __init__(self, task, label_smoothing: float):
        super().__init__(task)
        self.label_smoothing = label_smoothing

    def forward(self, model, sample: dict, reduce: bool = True):
        output = model(**sample["net_input"])
        return self.loss(output, sample)

    def loss(self, output: DenseOutput, sample: dict):
        """(loss, sample_size, logging_output) from the model's output; sums, division happens in `reduce_metrics`."""
        if "native_label_maps" in sample:
            loss, sample_size = self._native_loss(output.class_logits, sample["native_label_maps"])
        else:
            target = sample["target"]
            sample_size = (target != IGNORE_INDEX).sum() / target[0].numel()
            loss = upsampled_cross_entropy(output.class_logits, target, self.label_smoothing) * sample_size
        logging_output = {
            "loss": loss.detach(),
            "sample_size": sample_size.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
        }
        return loss, sample_size, logging_output

    def _native_loss(self, class_logits: Tensor, label_maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Sum over photos of the mean loss at each photo's own size; the sample size counts photos with a label."""
        losses, labelled = [], []
        for logits, label_map in zip(class_logits, label_maps):
            losses.append(upsampled_cross_entropy(logits[None], label_map[None], self.label_smoothing))
            labelled.append((label_map != IGNORE_INDEX).any())
        return torch.stack(losses).sum(), torch.stack(labelled).sum().float()

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        sample_size = float(sum(log.get("sample_size", 0) for log in logging_outputs))
        loss = float(sum(log.get("loss", 0) for log in logging_outputs))
        metrics.log_scalar("loss", loss / max(sample_size, 1e-12), sample_size, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
