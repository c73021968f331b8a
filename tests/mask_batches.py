"""A small batch of mask predictions and targets, for losses and matching."""

import torch

from ofaseg.structures import MaskOutput, MaskTargets

QUERIES, CLASSES, LAYERS, SIZE, FULL = 6, 4, 4, (5, 7), (20, 28)


def make_output(batch: int = 3, grad: bool = False) -> MaskOutput:
    def some(*shape):
        return torch.randn(*shape).requires_grad_(grad)

    logits = tuple(some(batch, QUERIES, CLASSES + 1) for _ in range(LAYERS))
    return MaskOutput(logits, tuple(some(batch, QUERIES, 8) for _ in range(LAYERS)), some(batch, 8, *SIZE))


def make_targets(counts=(2, 0, 8)) -> MaskTargets:
    """Rectangles; the third photo has more of them than there are queries, and an empty mask among them."""
    masks = torch.zeros(sum(counts), *FULL, dtype=torch.bool)
    for n, mask in enumerate(masks[:-1]):
        mask[n : n + 7, 2 * n : 3 * n + 9] = True
    return MaskTargets(masks, torch.arange(sum(counts)) % CLASSES, tuple(counts))
