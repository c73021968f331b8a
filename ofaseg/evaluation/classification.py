"""Accuracy of a classifier, over all classes, those of the training (base) and those held out (novel)."""

from typing import Sequence

import torch
from torch import Tensor

TOP = (1, 5)
GROUPS = ("", "_base", "_novel")


def hit_counts(class_logits: Tensor, target: Tensor, novel: Tensor) -> Tensor:
    """Counts of samples, for sums over batches and processes; no host sync.

    Args:
        class_logits: (B, K).
        target: (B,) class ids.
        novel: (K,) bool.

    Returns: (3, 3) long: for all, base and novel classes, how many samples are among the best one, among the best five, and there.
    """
    best = class_logits.topk(min(TOP[-1], class_logits.shape[1]), dim=1).indices == target[:, None]
    hits = torch.stack([*(best[:, :top].any(1) for top in TOP), torch.ones_like(target, dtype=torch.bool)], 1)
    held_out = novel[target]
    return torch.stack([hits.sum(0), hits[~held_out].sum(0), hits[held_out].sum(0)])


def accuracies(counts: Sequence[Sequence[float]]) -> dict[str, float]:
    """`acc_top1`, `acc_top5`, `acc_top1_base` ... in 0..1 from summed `hit_counts`; groups without a sample are left out."""
    found = {}
    for group, (*hits, samples) in zip(GROUPS, counts):
        if samples:
            found |= {f"acc_top{top}{group}": float(hit / samples) for top, hit in zip(TOP, hits)}
    return found
