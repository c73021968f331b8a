"""Contrastive loss of image-text pairs over the pairs of all processes."""

from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from ofaseg import distributed
from ofaseg.losses import contrastive_loss
from ofaseg.structures import ImageTextOutput


@dataclass
class ImageTextContrastiveConfig(FairseqDataclass):
    label_smoothing: float = field(default=0.0, metadata={"help": "epsilon of label smoothing, 0..1 (published: 0)"})
    local_negatives: bool = field(default=False, metadata={"help": "compare with the pairs of the own process only (published: of all)"})
    batch_size: Optional[int] = II("dataset.batch_size")


@register_criterion("image_text_contrastive", dataclass=ImageTextContrastiveConfig)
class ImageTextContrastive(FairseqCriterion):
    """Symmetric InfoNCE (SimSeg, eq. 5). The sample size is the number of pairs, so the gradient is that of the mean over the pairs
    of all processes, however these share them.
    """

    def __init__(self, task, label_smoothing: float, local_negatives: bool, batch_size: Optional[int]):
        super().__init__(task)
        self.label_smoothing, self.local_negatives, self.batch_size = label_smoothing, local_negatives, batch_size

    def forward(self, model, sample: dict, reduce: bool = True):
        """(loss, sample_size, logging_output) of a batch of pairs; sums, division happens in `reduce_metrics`."""
        return self.loss(model(**sample["net_input"]), sample.get("repeated", False))

    def loss(self, output: ImageTextOutput, repeated: bool = False):
        """As `forward`, from the model's output.

        Args:
            repeated: the batch only stands in for one that this process does not have; nobody compares with it.
        """
        image, text = output.image_embedding, output.text_embedding
        if self.training and not self.local_negatives and distributed.world_size() > 1:
            all_images, all_texts, valid, first = self._rows_of_all(image, text, repeated)
        else:
            all_images, all_texts, valid, first = image, text, None, 0
        loss, hits = contrastive_loss(image, text, all_images, all_texts, output.temperature, first, valid, self.label_smoothing)
        pairs = len(image)
        log = {
            "loss": loss.detach(),
            "sample_size": pairs,
            "nsentences": pairs,
            "ntokens": pairs,
            "_hits": hits.double(),
            "_temperature": output.temperature.detach().double() * pairs,
        }
        return loss, pairs, log

    def _rows_of_all(self, image: Tensor, text: Tensor, repeated: bool) -> tuple[Tensor, Tensor, Tensor, int]:
        """The rows of all processes, which of them are pairs, and where ours begin. Raises ValueError without --batch-size.

        Every process fills up to --batch-size rows, so that none has to ask how many the others have.
        """
        if not self.batch_size or len(image) > self.batch_size:
            raise ValueError("image_text_contrastive on several processes needs --batch-size, the most pairs of a process")
        missing = self.batch_size - len(image)
        valid = torch.arange(self.batch_size, device=image.device) < (0 if repeated else len(image))
        all_images, all_texts = (distributed.gather_rows(F.pad(rows, (0, 0, 0, missing))) for rows in (image, text))
        all_valid, first = distributed.gather_rows(valid), distributed.rank() * self.batch_size
        if repeated:  # its own loss is thrown away, but must be a number
            all_valid[first : first + len(image)] = True
        return all_images, all_texts, all_valid, first

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        pairs = float(sum(log.get("sample_size", 0) for log in logging_outputs if "_hits" in log))
        if not pairs:
            return
        metrics.log_scalar("loss", float(sum(log.get("loss", 0) for log in logging_outputs)) / pairs, pairs, round=4)
        hits = sum(log["_hits"] for log in logging_outputs if "_hits" in log)
        for name, count in zip(("image_to_text", "text_to_image"), hits.tolist()):
            metrics.log_scalar(f"acc_{name}", count / pairs, pairs, round=4)
        temperature = float(sum(log["_temperature"] for log in logging_outputs if "_temperature" in log))
        metrics.log_scalar("temperature", temperature / pairs, pairs, round=5)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
