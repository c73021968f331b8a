"""Which predicted mask answers for which target: the assignment of least cost (Mask2Former, section 3.2; FreeSeg, section 3.3).

Costs of all decoder layers and photos are computed where the model is and fetched together: one transfer per step.
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.structures import MaskOutput, MaskTargets
from ofaseg.utils.points import bilinear_points

CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}
"""Mask logits that exist at a time, per device type."""
LARGEST_COST = 1e9
"""Stands for costs that are no numbers, so that a step that overflowed ends with its loss, not here."""


@dataclass(frozen=True)
class MatchCosts:
    """Weights of the costs; the defaults are FreeSeg's, whose mask cost is focal and over all pixels.

    Attributes:
        class_weight, mask_weight, dice_weight: factors.
        points: 0 for all pixels of the mask logits' grid; else cross-entropy and dice over so many random points (Mask2Former: 12544).
        alpha: weight of the mask's pixels against others, 0..1, in the focal cost; its gamma is 2.
    """

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 5.0
    points: int = 0
    alpha: float = 0.25


MASK2FORMER_COSTS = MatchCosts(class_weight=2.0, mask_weight=5.0, points=12544)


class Match(NamedTuple):
    """The assignment of one photo with N targets, for L predictions; M is the smaller of Q and N.

    Attributes:
        queries: (L, M) numbers of queries, ascending.
        targets: (L, M) numbers of the photo's targets.
    """

    queries: Tensor
    targets: Tensor


@torch.no_grad()
def match_masks(
    output: MaskOutput,
    targets: MaskTargets,
    costs: Optional[MatchCosts] = None,
    layers: Optional[Sequence[int]] = None,
    generator: Optional[torch.Generator] = None,
) -> list[Match]:
    """The assignments of every photo, for all predictions or those numbered in `layers`, on the device of the output.

    `generator` draws the points, when `costs` has some.
    """
    from scipy.optimize import linear_sum_assignment  # takes a while, and only training needs it

    costs = costs or MatchCosts()
    layers = range(len(output.class_logits)) if layers is None else layers
    device, queries = output.mask_features.device, output.class_logits[0].shape[1]
    with torch.autocast(device.type, enabled=False):
        parts = [
            _photo_costs(output, targets, b, start, count, costs, layers, generator)
            for b, (start, count) in enumerate(zip(targets.starts, targets.counts))
        ]
        flat = torch.cat([part.flatten() for part in parts])
        flat = flat.nan_to_num(LARGEST_COST, LARGEST_COST, -LARGEST_COST).cpu().numpy()  # the step's one transfer
    pairs, place = [], 0
    for count in targets.counts:
        size = len(layers) * queries * count
        of_photo = flat[place : place + size].reshape(len(layers), queries, count)
        pairs.append([linear_sum_assignment(of_layer) for of_layer in of_photo])
        place += size
    return _on_device(pairs, [min(queries, count) for count in targets.counts], device)


def _on_device(pairs: list, sizes: list[int], device) -> list[Match]:
    """(photo, layer) -> (queries, targets) arrays, as tensors that were sent together."""
    rows = [torch.stack([torch.as_tensor(side, dtype=torch.long) for layer in photo for side in layer]) for photo in pairs]
    flat = torch.cat([row.flatten() for row in rows]).to(device, non_blocking=True)
    matches = []
    for part, row, size in zip(flat.split([row.numel() for row in rows]), rows, sizes):
        both = part.view(len(row) // 2, 2, size)
        matches.append(Match(both[:, 0], both[:, 1]))
    return matches


def _photo_costs(output, targets, photo: int, start: int, count: int, costs: MatchCosts, layers, generator) -> Tensor:
    """(L, Q, N) costs of one photo."""
    embeddings = torch.stack([output.mask_embeddings[layer][photo] for layer in layers]).float()
    if not count:
        return embeddings.new_zeros(*embeddings.shape[:2], 0)
    probs = torch.stack([output.class_logits[layer][photo] for layer in layers]).float().softmax(-1)
    class_cost = -probs[..., targets.classes[start : start + count].long()]
    features, masks = _pixels(output.mask_features[photo].float(), targets.masks[start : start + count], costs.points, generator)
    rows = embeddings.flatten(0, 1)
    step = max(1, CHUNK_ELEMENTS.get(features.device.type, 2**24) // features.shape[1])
    pixel_cost = torch.cat([_mask_costs(part @ features, masks, costs) for part in rows.split(step)])
    return costs.class_weight * class_cost + pixel_cost.view_as(class_cost)


def _pixels(features: Tensor, masks: Tensor, points: int, generator) -> tuple[Tensor, Tensor]:
    """Features (M, h, w), masks (N, H, W) -> features (M, P) and masks (N, P) float: at all pixels of features, or at random points."""
    if points:
        where = torch.rand(1, points, 2, device=features.device, generator=generator)
        sampled = F.grid_sample(features[None], 2 * where[:, None] - 1, align_corners=False)[0, :, 0]
        return sampled, bilinear_points(masks, where.expand(len(masks), -1, -1))
    rows = _nearest(masks.shape[1], features.shape[1], features.device)
    columns = _nearest(masks.shape[2], features.shape[2], features.device)
    return features.flatten(1), masks[:, rows][:, :, columns].flatten(1).float()


def _nearest(size: int, wanted: int, device) -> Tensor:
    """Which of `size` samples stand for `wanted` ones, as `F.interpolate(mode="nearest")` chooses."""
    places = torch.arange(wanted, device=device, dtype=torch.float32) * (size / wanted)
    return places.floor().long().clamp(max=size - 1)


def _mask_costs(logits: Tensor, masks: Tensor, costs: MatchCosts) -> Tensor:
    """Weighted mask and dice costs (R, N) of logits (R, P) against masks (N, P)."""
    probs, outside = logits.sigmoid(), F.softplus(logits)
    inside = outside - logits
    if not costs.points:  # focal
        inside, outside = costs.alpha * (1 - probs).square() * inside, (1 - costs.alpha) * probs.square() * outside
    mask_cost = ((inside - outside) @ masks.T + outside.sum(1, keepdim=True)) / logits.shape[1]
    dice = 1 - (2 * (probs @ masks.T) + 1) / (probs.sum(1, keepdim=True) + masks.sum(1) + 1)
    return costs.mask_weight * mask_cost + costs.dice_weight * dice
