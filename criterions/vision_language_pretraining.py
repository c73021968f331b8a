"""Token cross-entropy of vision-language pretraining, and two optional losses that align patches with words."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor, nn

from ofaseg.structures import unwrap

INPUTS = ("net_input", "region_input", "text_input")
"""Parts of a batch, in the order of its targets: whole images, cut-out regions, no image."""
TOP_PATCHES = 3
"""The score of a word in an image is the mean over this many best patches."""
PRESENCE_THRESHOLD = 0.3
"""Cosine above which the presence loss takes a word for present."""


@dataclass
class VisionLanguagePretrainingConfig(FairseqDataclass):
    contrast_weight: float = field(
        default=0.0, metadata={"help": "weight of the image-caption contrast over patch-word cosines (0: no alignment loss)"}
    )
    presence_weight: float = field(
        default=0.0, metadata={"help": "weight of the word-presence loss, a weak supervision of the caption words themselves (0: off)"}
    )


@register_criterion("vision_language_pretraining", dataclass=VisionLanguagePretrainingConfig)
class VisionLanguagePretraining(FairseqCriterion):
    """Mean cross-entropy of target tokens; the sample size is their number. Accuracy is logged per pretraining task.

    The alignment losses work on projected patches before type embedding and LayerNorm, where words are substituted in
    image-free training. Both need the `caption_ids` of the batch and the task's `content_word_ids`.
    """

    def __init__(self, task, contrast_weight: float, presence_weight: float):
        super().__init__(task)
        self.contrast_weight, self.presence_weight = contrast_weight, presence_weight
        self.pad, self.task_names = task.source_dictionary.pad(), task.task_names
        # log of the inverse temperature of each alignment loss
        self.contrast_scale = nn.Parameter(torch.tensor(2.3), requires_grad=contrast_weight > 0)
        self.presence_scale = nn.Parameter(torch.tensor(2.3), requires_grad=presence_weight > 0)
        self.register_buffer("content_words", torch.as_tensor(task.content_word_ids), persistent=False)

    def forward(self, model, sample: dict, reduce: bool = True):
        """(loss summed over tokens, number of target tokens, logging output)."""
        aligned = self.contrast_weight > 0 or self.presence_weight > 0
        captured: list[Tensor] = []
        parts = []
        for key in INPUTS:
            if sample[key] is None:
                continue
            with patch_access(model, sample.get(f"{key}_words"), captured if aligned and key == "net_input" else None):
                parts.append(model(**sample[key]).float())
        logits = torch.cat(parts)
        target = sample["target"]
        nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=self.pad, reduction="sum")
        sample_size = int(target.ne(self.pad).sum())
        log = {"loss": nll.detach(), "ntokens": sample_size, "nsentences": sample["nsentences"], "sample_size": sample_size}
        log["_token_counts"] = self.token_counts(logits, target, sample["tasks"])
        loss = nll
        if captured:
            extra, parts = self.alignment(captured[0].float(), word_table(model), sample["caption_ids"])
            loss = nll + extra * sample_size
            log.update({f"_{name}": value.detach() * sample_size for name, value in parts.items()})
        return loss, sample_size, log

    def token_counts(self, logits: Tensor, target: Tensor, tasks: Tensor) -> Tensor:
        """(number of tasks, 2) float64: correct and all target tokens per pretraining task."""
        counted = target.ne(self.pad)
        correct = (logits.argmax(-1).eq(target) & counted).sum(1)
        counts = torch.zeros(len(self.task_names), 2, dtype=torch.float64, device=target.device)
        return counts.index_add_(0, tasks, torch.stack([correct, counted.sum(1)], 1).double())

    def alignment(self, patches: Tensor, words: Tensor, caption_ids: Tensor) -> tuple[Tensor, dict]:
        """(weighted sum, unweighted parts) of the alignment losses switched on."""
        total, parts = patches.new_zeros(()), {}
        if self.contrast_weight > 0:
            parts["contrast"] = contrast_loss(patches, words, caption_ids, self.content_words, self.contrast_scale.exp())
            total = total + self.contrast_weight * parts["contrast"]
        if self.presence_weight > 0:
            parts["presence"] = presence_loss(patches, words, caption_ids, self.content_words, self.presence_scale.exp())
            total = total + self.presence_weight * parts["presence"]
        return total, parts

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        size = max(float(sum(log.get("sample_size", 0) for log in logging_outputs)), 1.0)
        metrics.log_scalar("loss", float(sum(log.get("loss", 0) for log in logging_outputs)) / size, size, round=4)
        for name in ("contrast", "presence"):
            values = [float(log[f"_{name}"]) for log in logging_outputs if f"_{name}" in log]
            if values:
                metrics.log_scalar(name, sum(values) / size, size, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def word_table(model) -> Tensor:
    """(V, D) word embeddings of the model."""
    return unwrap(model).encoder.embed_tokens.weight


@contextmanager
def patch_access(model, words: Optional[Tensor], captured: Optional[list]):
    """Inside the block, projected patches (B, P, D) of a forward pass are appended to `captured`, then replaced by words.

    Args:
        words: (B, h, w) dictionary ids, -1 keeps the patch; None keeps all.
        captured: receives the projected patches as they were; None when they are not wanted.
    """
    embed = unwrap(model).encoder.embed_tokens

    def replace(module, inputs, patches):
        if captured is not None:
            captured.append(patches)
        if words is None:
            return patches
        ids = words.flatten(1)
        return torch.where(ids.unsqueeze(-1) >= 0, embed(ids.clamp(min=0)).to(patches.dtype), patches)

    handle = unwrap(model).encoder.image_proj.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def word_scores(patches: Tensor, words: Tensor) -> Tensor:
    """(B, n) score of n words (n, D) in images (B, P, D): mean cosine of the best `TOP_PATCHES` patches."""
    cosine = F.normalize(patches, dim=-1) @ F.normalize(words, dim=-1).T
    return cosine.topk(min(TOP_PATCHES, patches.shape[1]), dim=1).values.mean(1)


def caption_membership(caption_ids: Tensor, content_words: Tensor) -> Tensor:
    """(B, n) bool: does caption b, padded ids (B, L), hold content word n?"""
    return (caption_ids[:, :, None] == content_words).any(1)


def contrast_loss(patches: Tensor, words: Tensor, caption_ids: Tensor, content_words: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE in the batch; an image-caption score is the mean word score over the caption's content words."""
    member = caption_membership(caption_ids, content_words).float()
    scores = word_scores(patches, words[content_words])  # (B images, n)
    logits = scale * scores @ (member / member.sum(1, keepdim=True).clamp(min=1)).T  # (B images, B captions)
    truth = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth))


def presence_loss(patches: Tensor, words: Tensor, caption_ids: Tensor, content_words: Tensor, scale: Tensor) -> Tensor:
    """Binary cross-entropy per content word: is it in this image's caption?"""
    member = caption_membership(caption_ids, content_words).float()
    scores = word_scores(patches, words[content_words])
    return F.binary_cross_entropy_with_logits(scale * (scores - PRESENCE_THRESHOLD), member)
