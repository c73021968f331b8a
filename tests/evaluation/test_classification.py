"""Accuracies against counting by hand; sums over parts; groups without samples."""

import numpy as np
import pytest
import torch

from ofaseg.evaluation.classification import accuracies, hit_counts


def test_counts_and_scores():
    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(1))
    novel = torch.arange(9) >= 6
    order = np.argsort(-logits.numpy(), axis=1)
    ranks = np.array([int(np.flatnonzero(row == k)[0]) for row, k in zip(order, target.tolist())])
    held_out = target.numpy() >= 6
    expected = {}
    for name, chosen in (("", slice(None)), ("_base", ~held_out), ("_novel", held_out)):
        expected |= {f"acc_top1{name}": np.mean(ranks[chosen] < 1), f"acc_top5{name}": np.mean(ranks[chosen] < 5)}
    whole = hit_counts(logits, target, novel)
    assert accuracies(whole.tolist()) == pytest.approx(expected)
    parts = hit_counts(logits[:7], target[:7], novel) + hit_counts(logits[7:], target[7:], novel)
    assert torch.equal(parts, whole)


def test_few_classes_and_empty_groups():
    counts = hit_counts(torch.eye(3), torch.tensor([0, 2, 2]), torch.zeros(3, dtype=torch.bool))
    assert accuracies(counts.tolist()) == pytest.approx({f"acc_top{k}{g}": v for g in ("", "_base") for k, v in ((1, 2 / 3), (5, 1))})
    assert accuracies(torch.zeros(3, 3).tolist()) == {}
