"""A linear classifier on features that were computed once: training and its accuracies, in plain torch."""

import math
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WARMUP = 1 / 9
"""Share of the steps in which the rate rises (published: 11.11 %)."""


def cosine_rate(step: int, steps: int, peak: float, warmup: float = WARMUP) -> float:
    """Rate of step 0..steps-1: linear from 0 to `peak` over the first int(warmup * steps) steps, then one half cosine to 0."""
    rise = int(warmup * steps)
    if step < rise:
        return peak * step / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """All sets (N, D) with the mean and deviation of `train` taken out per channel; a constant channel becomes 0."""
    deviation, mean = torch.std_mean(train, 0, correction=0)
    scale = torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.0)
    return [(features - mean) * scale for features in (train, *others)]


def train_classifier(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    optimizer: Callable[[list], torch.optim.Optimizer],
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int = 1,
    on_epoch: Optional[Callable[[int, float], None]] = None,
) -> nn.Linear:
    """A linear layer trained by cross-entropy; the same inputs and seed give the same layer on one device.

    Args:
        features: (N, D) float32; labels: (N,) int64 below `num_classes`.
        optimizer: parameters -> optimizer; its rate is set before each step.
        lr: the highest rate, see `cosine_rate`.
        batch_size: rows of a step; the last step of an epoch takes what is left.
        on_epoch: called with (epoch from 1, mean loss) after each epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    classifier = nn.Linear(features.shape[1], num_classes)
    bound = features.shape[1] ** -0.5  # torch's own start, from this run's generator
    with torch.no_grad():
        classifier.weight.uniform_(-bound, bound, generator=generator)
        classifier.bias.uniform_(-bound, bound, generator=generator)
    classifier.to(features.device)
    rule, per_epoch = optimizer(list(classifier.parameters())), -(-len(features) // batch_size)
    for epoch in range(epochs):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        total = features.new_zeros(())
        for k, rows in enumerate(order.split(batch_size)):
            for group in rule.param_groups:
                group["lr"] = cosine_rate(epoch * per_epoch + k, epochs * per_epoch, lr)
            loss = F.cross_entropy(classifier(features[rows]), labels[rows])
            rule.zero_grad()
            loss.backward()
            rule.step()
            total += loss.detach() * len(rows)
        if on_epoch is not None:
            on_epoch(epoch + 1, float(total) / len(features))
    return classifier


@torch.no_grad()
def accuracies(classifier: nn.Module, features: Tensor, labels: Tensor) -> dict[str, float]:
    """top1 and top5, shares 0..1 of the rows whose label is the best, or among the five best (all, where there are fewer classes)."""
    logits = torch.cat([classifier(part) for part in features.split(8192)])
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {"top1": float(best[:, 0].double().mean()), "top5": float(best.any(1).double().mean())}
