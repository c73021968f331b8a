"""Class maps from subclasses: finer names of a class share its map (LLM-supervision, Sun et al. 2024; arXiv 2404.00701)."""

import math
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

RULES = ("softmax", "mean", "superclass_mean", "max", "logsumexp")
"""How the subclasses of a class become one map; softmax is the published rule."""

NAME_RULES = ("mean", "superclass_mean")
"""Rules that make one vector per class from names alone, before a photo is seen."""

CHUNK_ELEMENTS = 2**24
"""Subclass map values that `max` and `logsumexp` hold at once (64 MB in float32)."""


@dataclass(frozen=True)
class SubclassPrompts:
    """Finer names of K classes, as a model of texts reads them.

    Attributes:
        prompts: class -> subclass -> template -> token ids; at least one subclass for each class.
        rule: one of `RULES`.
        temperature: above 0, of softmax and logsumexp.

    Raises:
        ValueError: a class without subclasses, an unknown rule, or a temperature not above 0.
    """

    prompts: Sequence[Sequence[Sequence[Sequence[int]]]]
    rule: str = "softmax"
    temperature: float = 1.0

    def __post_init__(self):
        check_rule(self.rule, self.temperature)
        check_counts(self.counts)

    @property
    def counts(self) -> list[int]:
        """Subclasses of each class."""
        return [len(names) for names in self.prompts]

    @property
    def flat(self) -> list[Sequence[Sequence[int]]]:
        """Prompts of all subclasses, class by class."""
        return [prompts for names in self.prompts for prompts in names]


def check_rule(rule: str, temperature: float) -> None:
    """Raises ValueError for an unknown rule, or a temperature not above 0."""
    if rule not in RULES:
        raise ValueError(f"unknown fusion rule {rule!r}; known: {', '.join(RULES)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, not {temperature}")


def check_counts(counts: Sequence[int]) -> None:
    """Raises ValueError for a class without subclasses."""
    if not counts or min(counts) < 1:
        which = counts.index(min(counts)) if counts else 0
        raise ValueError(f"class {which} has no subclass; give it at least its own name")


def subclass_maps(
    patches: Tensor, image: Tensor, subclasses: Tensor, mask: Tensor, superclasses: Tensor, rule: str = "softmax", temperature: float = 1.0
) -> Tensor:
    """Similarity of every patch with every class.

    - softmax (published): the class vector is the mean of its subclasses, weighted by softmax(cosine with the photo / temperature).
    - mean: all subclasses alike. superclass_mean: the class name itself counts as one more.
    - max, logsumexp: patch by patch, of the subclasses' own maps; temperature * (logsumexp(map / temperature) - log n).

    Vectors are not made unit again: the published code leaves them shorter, and maps are stretched to 0..1 afterwards.

    Args:
        patches: (B, P, D) unit vectors.
        image: (B, D) unit vectors of whole photos.
        subclasses: (K, N, D) unit vectors, filled up to the longest list.
        mask: (K, N) bool, True for subclasses; at least one per class.
        superclasses: (K, D) unit vectors of the class names.
        temperature: above 0.

    Returns: (B, P, K).

    Raises:
        ValueError: an unknown rule, a temperature not above 0, or a class without subclasses.
    """
    check_rule(rule, temperature)
    if rule in ("max", "logsumexp"):
        return _patchwise(patches, subclasses, mask, rule, temperature)
    if rule == "softmax":
        scores = torch.einsum("knd,bd->bkn", subclasses, image) / temperature
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        vectors = torch.einsum("bkn,knd->bkd", weights, subclasses)
        return patches @ vectors.transpose(1, 2)
    return patches @ mean_vectors(subclasses, mask, superclasses, rule).T


def mean_vectors(subclasses: Tensor, mask: Tensor, superclasses: Tensor, rule: str) -> Tensor:
    """(K, D) by one of `NAME_RULES`; arguments as `subclass_maps`. Not of length 1."""
    sums, counts = (subclasses * mask[..., None]).sum(1), mask.sum(1, keepdim=True).to(subclasses.dtype)
    if rule == "superclass_mean":
        sums, counts = sums + superclasses, counts + 1
    return sums / counts


def _patchwise(patches: Tensor, subclasses: Tensor, mask: Tensor, rule: str, temperature: float) -> Tensor:
    """(B, P, K) of `max` and `logsumexp`, a few classes at a time."""
    classes, longest, dim = subclasses.shape
    step = max(1, CHUNK_ELEMENTS // (patches.shape[0] * patches.shape[1] * longest))
    parts = []
    for start in range(0, classes, step):
        own, there = subclasses[start : start + step], mask[start : start + step]
        maps = (patches @ own.reshape(-1, dim).T).unflatten(-1, (len(own), longest)).masked_fill(~there, -math.inf)
        if rule == "max":
            parts.append(maps.amax(-1))
        else:
            parts.append(temperature * ((maps / temperature).logsumexp(-1) - there.sum(1).log()))
    return torch.cat(parts, -1)


def padded_subclasses(vectors: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """(K, N, D) and mask (K, N) from the subclass vectors (sum of counts, D) of all classes, class by class.

    Raises:
        ValueError: a class without subclasses.
    """
    check_counts(counts)
    filled = torch.nn.utils.rnn.pad_sequence(vectors.split(counts), batch_first=True)
    lengths = torch.tensor(counts, device=vectors.device)
    return filled, torch.arange(filled.shape[1], device=vectors.device) < lengths[:, None]
