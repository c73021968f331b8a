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
    image-free training. Both need the `caption_ids` of the batch (`--alignment-captions`) and the task's `content_word_ids`.
    A batch without whole images has none; what is logged has the same keys in every process all the same.

    Attributes:
        weights: the alignment losses that are switched on. Each has a parameter `<name>_scale`, the log of its inverse
            temperature; without any, the criterion has no parameter (fairseq wraps a criterion with parameters in DDP).
    """

    def __init__(self, task, contrast_weight: float, presence_weight: float):
        super().__init__(task)
        self.weights = {name: weight for name, weight in (("contrast", contrast_weight), ("presence", presence_weight)) if weight > 0}
        if self.weights and not task.cfg.alignment_captions:
            flags = " and ".join(f"--{name}-weight" for name in self.weights)
            raise ValueError(f"the losses of {flags} read captions: add --alignment-captions, or set the weights to 0")
        self.pad, self.task_names = task.source_dictionary.pad(), task.task_names
        for name in self.weights:
            self.register_parameter(f"{name}_scale", nn.Parameter(torch.tensor(2.3)))
        self.register_buffer("content_words", torch.as_tensor(task.content_word_ids), persistent=False)

    def load_state_dict(self, state_dict: Optional[dict], strict: bool = True, assign: bool = False):
        """Takes the scales that a checkpoint has of the losses switched on here; a later stage may switch losses on or off."""
        own = self.state_dict()
        return super().load_state_dict({name: value for name, value in (state_dict or {}).items() if name in own}, False, assign)

    def forward(self, model, sample: dict, reduce: bool = True):
        """(loss summed over tokens, number of target tokens, logging output)."""
        captured: list[Tensor] = []
        logits = self.token_logits(model, sample, captured)
        target, sample_size = sample["target"], sample["ntokens"]
        nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=self.pad, reduction="sum")
        log = {"loss": nll.detach(), "ntokens": sample_size, "nsentences": sample["nsentences"], "sample_size": sample_size}
        log["_token_counts"] = self.token_counts(logits, target, sample["tasks"])
        loss = nll
        if self.weights:
            values = {}
            if captured:
                extra, values = self.alignment(captured[0].float(), word_table(model), sample["caption_ids"])
                loss = nll + extra * sample_size
            log["_aligned_size"] = sample_size if captured else 0
            for name in self.weights:
                log[f"_{name}"] = values[name].detach() * sample_size if captured else nll.new_zeros(())
        if sample["net_input"] is None and torch.is_grad_enabled() and unwrap(model) is not model:
            # another process may have drawn images: DDP waits until every parameter has a gradient in every process
            loss = loss + zero_of([*unwrap(model).parameters(), *self.parameters()])
        return loss, sample_size, log

    def token_logits(self, model, sample: dict, captured: list) -> Tensor:
        """(B, T, V) float32 scores of all parts of a batch; for the alignment losses, `captured` receives its whole images' patches."""
        if getattr(getattr(model, "module", None), "find_unused_parameters", False):
            raise ValueError("--find-unused-parameters counts on one forward pass per step, pretraining makes several: leave it out")
        parts, run = [], model
        for key in INPUTS:
            if sample[key] is None:
                continue
            wanted = captured if self.weights and key == "net_input" else None
            with patch_access(model, sample.get(f"{key}_words"), wanted):
                parts.append(run(**sample[key]).float())
            run = unwrap(model)  # DDP is to see one forward per backward; processes may have unlike numbers of parts
        words = word_table(model)
        return torch.cat(parts) if parts else words.new_zeros(0, 0, len(words))

    def token_counts(self, logits: Tensor, target: Tensor, tasks: Tensor) -> Tensor:
        """(number of tasks, 2) float64: correct and all target tokens per pretraining task."""
        counted = target.ne(self.pad)
        correct = (logits.argmax(-1).eq(target) & counted).sum(1)
        counts = torch.zeros(len(self.task_names), 2, dtype=torch.float64, device=target.device)
        return counts.index_add_(0, tasks, torch.stack([correct, counted.sum(1)], 1).double())

    def alignment(self, patches: Tensor, words: Tensor, caption_ids: Tensor) -> tuple[Tensor, dict]:
        """(weighted sum, unweighted parts) of the alignment losses switched on."""
        functions = {"contrast": contrast_loss, "presence": presence_loss}
        total, parts = patches.new_zeros(()), {}
        for name, weight in self.weights.items():
            scale = getattr(self, f"{name}_scale").exp()
            parts[name] = functions[name](patches, words, caption_ids, self.content_words, scale)
            total = total + weight * parts[name]
        return total, parts

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        size = max(float(sum(log.get("sample_size", 0) for log in logging_outputs)), 1.0)
        metrics.log_scalar("loss", float(sum(log.get("loss", 0) for log in logging_outputs)) / size, size, round=4)
        aligned = float(sum(log.get("_aligned_size", 0) for log in logging_outputs))
        for name in ("contrast", "presence"):
            values = [float(log[f"_{name}"]) for log in logging_outputs if f"_{name}" in log]
            if values and aligned:
                metrics.log_scalar(name, sum(values) / aligned, aligned, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def word_table(model) -> Tensor:
    """(V, D) word embeddings of the model."""
    return unwrap(model).encoder.embed_tokens.weight


def zero_of(parameters) -> Tensor:
    """0, whose gradient with respect to every trainable one of `parameters` is 0."""
    return torch.stack([0.0 * parameter.sum(dtype=torch.float32) for parameter in parameters if parameter.requires_grad]).sum()


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
