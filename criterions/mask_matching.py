"""Losses of mask proposals after their assignment to the true masks (FreeSeg, section 3.3; Mask2Former, section 3.2)."""

from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from ofaseg.distributed import summed
from ofaseg.mask_losses import MaskLosses, mask_set_losses, supervised_layers
from ofaseg.mask_matching import MatchCosts, match_masks
from ofaseg.structures import MaskOutput, MaskTargets

PARTS = ("loss_ce", "loss_mask", "loss_dice", "loss_auxiliary")


@dataclass
class MaskMatchingConfig(FairseqDataclass):
    class_weight: float = field(default=1.0, metadata={"help": "factor of the class loss (Mask2Former: 2)"})
    mask_weight: float = field(
        default=20.0, metadata={"help": "factor of the mask loss: focal, or cross-entropy at points (Mask2Former: 5)"}
    )
    dice_weight: float = field(default=5.0, metadata={"help": "factor of the dice loss"})
    no_object: float = field(default=0.1, metadata={"help": "weight of queries without a mask in the class loss"})
    mask_points: int = field(
        default=0, metadata={"help": "points per mask that losses and assignment read, 0 = all pixels (Mask2Former: 12544)"}
    )
    all_auxiliary: bool = field(default=False, metadata={"help": "supervise the prediction before the last one too (published: not)"})


@register_criterion("mask_matching", dataclass=MaskMatchingConfig)
class MaskMatching(FairseqCriterion):
    """Class, mask and dice losses of every supervised prediction, each with an assignment of its own.

    The sample size is the number of photos. Mask losses are means over the masks of all processes, the class loss one over the queries of
    a process, so the masks' gradient is the same on any number of processes.

    Attributes:
        parts: names of the losses that are logged beside their sum; those of auxiliary predictions together.
    """

    parts = PARTS

    def __init__(
        self,
        task,
        class_weight: float = 1.0,
        mask_weight: float = 20.0,
        dice_weight: float = 5.0,
        no_object: float = 0.1,
        mask_points: int = 0,
        all_auxiliary: bool = False,
    ):
        super().__init__(task)
        weights = dict(class_weight=class_weight, mask_weight=mask_weight, dice_weight=dice_weight, points=mask_points)
        self.losses, self.costs = MaskLosses(**weights, no_object=no_object), MatchCosts(**weights)
        self.all_auxiliary = all_auxiliary

    def forward(self, model, sample: dict, reduce: bool = True):
        """(loss, sample_size, logging_output) of a training step; sums, division happens in `reduce_metrics`.

        Args:
            sample: with `net_input`, `masks`, a `MaskTargets`, and `counted`, False for a batch that is only repeated so that this
                process has one: its masks do not count in the means of the others. All processes must call this together.
        """
        output = model(**sample["net_input"])
        targets, photos = sample["masks"], len(sample["masks"].counts)
        sums = torch.tensor([len(targets.masks), photos], dtype=torch.float32, device=output.mask_features.device)
        masks, all_photos = summed(sums if sample["counted"] else 0 * sums)
        return self.loss(output, targets, masks * photos / all_photos.clamp(min=1))

    def loss(self, output: MaskOutput, targets: MaskTargets, num_masks: Optional[Tensor] = None):
        """As `forward`, from a model's output.

        Args:
            num_masks: scalar that sums over masks are divided by; None for their number.
        """
        layers = supervised_layers(len(output.class_logits), self.all_auxiliary)
        if num_masks is None:
            num_masks = torch.tensor(float(len(targets.masks)))
        matches = match_masks(output, targets, self.costs, list(layers))
        losses = mask_set_losses(output, targets, matches, num_masks, self.losses, layers)
        total = sum(losses.values())
        if not len(targets.masks):  # every weight has a gradient in every step, as processes that wait for each other need
            total = total + 0 * output.mask_embeddings[-1].float().sum()
        photos = len(targets.counts)
        parts = {name: losses[name].detach() for name in self.parts[:3]}
        parts[self.parts[3]] = total.detach() - sum(parts.values())
        log = {"loss": total.detach() * photos, "sample_size": photos, "nsentences": photos, "ntokens": photos}
        return total * photos, photos, log | {name: value * photos for name, value in parts.items()}

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        photos = sum(int(log.get("sample_size", 0)) for log in logging_outputs)
        if not photos:
            return
        names = ("loss", *cls.parts)
        table = [torch.stack([torch.as_tensor(log[name]).float() for name in names]) for log in logging_outputs if "loss_ce" in log]
        for name, total in zip(names, sum(table).tolist()):  # one transfer
            metrics.log_scalar(name, total / photos, photos, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
