"""Contrastive loss of image-text pairs over the pairs of all processes."""

from dataclasses import dataclass, field

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics

from ofaseg import distributed
from ofaseg.losses import contrastive_loss
from ofaseg.structures import ImageTextOutput


@dataclass
class ImageTextContrastiveConfig(FairseqDataclass):
    label_smoothing: float = field(default=0.0, metadata={"help": "epsilon of label smoothing, 0..1 (published: 0)"})
    local_negatives: bool = field(default=False, metadata={"help": "compare with the pairs of the own process only (published: of all)"})


@register_criterion("image_text_contrastive", dataclass=ImageTextContrastiveConfig)
class ImageTextContrastive(FairseqCriterion):
    """Symmetric InfoNCE (SimSeg, eq. 5). The sample size is the number of pairs, so the gradient is that of the mean over the pairs
    of all processes. In training all processes need batches of one size, as `ImageTextDataset` makes them; elsewhere a process
    compares its own pairs only.
    """

    def __init__(self, task, label_smoothing: float, local_negatives: bool):
        super().__init__(task)
        self.label_smoothing, self.local_negatives = label_smoothing, local_negatives

    def forward(self, model, sample: dict, reduce: bool = True):
        """(loss, sample_size, logging_output) of a batch of pairs; sums, division happens in `reduce_metrics`."""
        return self.loss(model(**sample["net_input"]))

    def loss(self, output: ImageTextOutput):
        """As `forward`, from the model's output."""
        image, text, first = output.image_embedding, output.text_embedding, 0
        all_images, all_texts = image, text
        if self.training and not self.local_negatives:
            all_images, all_texts = distributed.gather_rows(image), distributed.gather_rows(text)
            first = distributed.rank() * len(image)
        loss, hits = contrastive_loss(image, text, all_images, all_texts, output.temperature, first, self.label_smoothing)
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
