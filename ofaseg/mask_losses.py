"""Losses of mask proposals: classes, focal or cross-entropy, and dice, for every supervised prediction (FreeSeg, section 3.3).

Masks are compared at the size of the targets. Only matched masks are computed, a few at a time, their gradient with them.
"""

from dataclasses import dataclass
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ofaseg.mask_matching import Match
from ofaseg.structures import MaskOutput, MaskTargets
from ofaseg.utils.points import bilinear_points
from ofaseg.utils.resize import resize_matrix

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Upsampled mask logits that exist at a time, per device type."""


@dataclass(frozen=True)
class MaskLosses:
    """Weights and options; the defaults are FreeSeg's published ones.

    Attributes:
        class_weight, mask_weight, dice_weight: factors of the three losses.
        no_object: weight of queries without a target in the class loss.
        points: 0 for all pixels; else cross-entropy and dice at so many points per mask (Mask2Former: 12544).
        oversample: candidates per point (Mask2Former: 3).
        importance: share of the points chosen among the candidates where the mask is least certain (Mask2Former: 0.75).
        alpha: weight of the mask's pixels against others, 0..1, in the focal loss; its gamma is 2.
    """

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 5.0
    no_object: float = 0.1
    points: int = 0
    oversample: float = 3.0
    importance: float = 0.75
    alpha: float = 0.25


MASK2FORMER_LOSSES = MaskLosses(class_weight=2.0, mask_weight=5.0, points=12544)


def supervised_layers(predictions: int, all_auxiliary: bool = False) -> dict[int, str]:
    """Number of a prediction -> suffix of its losses: the last one "", auxiliary ones "_0", "_1" and so on.

    FreeSeg's published code computes losses of the prediction before the last one, but has no weight for them: it is left out
    unless `all_auxiliary`.
    """
    auxiliary = range(predictions - 1 if all_auxiliary else max(predictions - 2, 0))
    return {predictions - 1: "", **{layer: f"_{layer}" for layer in auxiliary}}


def mask_set_losses(
    output: MaskOutput,
    targets: MaskTargets,
    matches: Sequence[Match],
    num_masks: Tensor,
    options: Optional[MaskLosses] = None,
    layers: Optional[dict[int, str]] = None,
    generator: Optional[torch.Generator] = None,
) -> dict[str, Tensor]:
    """Weighted losses by name: `loss_ce`, `loss_mask`, `loss_dice`, each with the suffix of its prediction.

    Args:
        matches: of every photo, for the predictions in the order of `layers`, see `match_masks`.
        num_masks: scalar, targets of all processes divided by processes; at least 1 is taken.
        layers: prediction -> suffix, see `supervised_layers`.
        generator: draws the points, when `options` has some.
    """
    options = options or MaskLosses()
    layers = layers or supervised_layers(len(output.class_logits))
    with torch.autocast(output.mask_features.device.type, enabled=False):
        mask, dice = _mask_losses(output, targets, matches, list(layers), options, generator)
        norm = num_masks.to(mask.device, torch.float32).clamp(min=1)
        classes = _class_targets(output, targets, matches, len(layers))
        losses = {}
        for row, (layer, suffix) in enumerate(layers.items()):
            losses[f"loss_ce{suffix}"] = options.class_weight * class_loss(output.class_logits[layer], classes[row], options.no_object)
            losses[f"loss_mask{suffix}"] = options.mask_weight * mask[row] / norm
            losses[f"loss_dice{suffix}"] = options.dice_weight * dice[row] / norm
    return losses


def class_loss(class_logits: Tensor, classes: Tensor, no_object: float) -> Tensor:
    """Weighted mean cross-entropy of logits (B, Q, K + 1) and classes (B, Q), of which K stands for no object and weighs `no_object`."""
    weight = torch.ones(class_logits.shape[-1], device=class_logits.device)
    weight[-1:].fill_(no_object)
    return F.cross_entropy(class_logits.flatten(0, 1).float(), classes.flatten(), weight)


def _class_targets(output: MaskOutput, targets: MaskTargets, matches: Sequence[Match], layers: int) -> Tensor:
    """(L, B, Q) the class of every query's target, K where it has none."""
    batch, queries, columns = output.class_logits[0].shape
    classes = torch.full((layers, batch, queries), columns - 1, dtype=torch.long, device=output.class_logits[0].device)
    for photo, (match, start, count) in enumerate(zip(matches, targets.starts, targets.counts)):
        if count:
            own = targets.classes[start : start + count].long()
            classes[:, photo].scatter_(1, match.queries, own[match.targets])
    return classes


def _mask_losses(output, targets, matches, layers: list[int], options: MaskLosses, generator) -> tuple[Tensor, Tensor]:
    """(L,) sums of mask and dice losses over all matched masks."""
    features = output.mask_features.float()
    nothing = features.sum() * 0  # of a batch without masks; the gradient is there, and 0
    mask, dice = nothing.expand(len(layers)), nothing.expand(len(layers))
    for photo, (match, start, count) in enumerate(zip(matches, targets.starts, targets.counts)):
        if not count:
            continue
        embeddings = torch.cat([output.mask_embeddings[layer][photo][match.queries[row]] for row, layer in enumerate(layers)]).float()
        logits = (embeddings @ features[photo].flatten(1)).unflatten(1, features.shape[2:])
        index, own = match.targets.flatten(), targets.masks[start : start + count]
        if options.points:
            of_masks = point_losses(logits, own, index, options, generator)
        else:
            of_masks = full_losses(logits, own, index, options.alpha)
        mask, dice = (total + values.view(len(layers), -1).sum(1) for total, values in zip((mask, dice), of_masks))
    return mask, dice


# ---- at all pixels ----


def full_losses(logits: Tensor, masks: Tensor, index: Tensor, alpha: float = 0.25) -> tuple[Tensor, Tensor]:
    """Focal loss (gamma 2, mean over pixels) and dice loss (smoothed by 1) of upsampled logits, mask by mask.

    Equal to computing both from ``F.interpolate(logits, (H, W), mode="bilinear")``, in float32, but a few masks at a time: neither all
    upsampled logits nor their gradients ever exist.

    Args:
        logits: (M, h, w).
        masks: (N, H, W) bool; logits m are compared with mask `index[m]`.

    Returns: two (M,) float32.
    """
    return _FullLosses.apply(logits, masks, index, alpha)


class _FullLosses(torch.autograd.Function):
    """The gradients of both losses with respect to the logits are computed with them, at the logits' size."""

    @staticmethod
    def forward(ctx, logits: Tensor, masks: Tensor, index: Tensor, alpha: float):
        need = ctx.needs_input_grad[0]
        step = max(1, CHUNK_ELEMENTS.get(logits.device.type, 2**22) // max(1, masks[0].numel()))
        parts = [_chunk(part, masks[where], alpha, need) for part, where in zip(logits.split(step), index.split(step))]
        focal, dice = (torch.cat([part[k] for part in parts]) for k in (0, 1))
        if need:
            ctx.save_for_backward(*(torch.cat([part[k] for part in parts]) for k in (2, 3)))
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_focal: Tensor, grad_dice: Tensor):
        of_focal, of_dice = ctx.saved_tensors
        return of_focal * grad_focal[:, None, None] + of_dice * grad_dice[:, None, None], None, None, None


def _chunk(logits: Tensor, masks: Tensor, alpha: float, need_gradient: bool) -> tuple[Tensor, ...]:
    """Focal and dice losses (c,) of logits (c, h, w) and masks (c, H, W), and the two gradients (c, h, w) where needed."""
    masks = masks.bool()
    wide = F.interpolate(logits[None].float(), size=masks.shape[1:], mode="bilinear", align_corners=False)[0]
    wrong_logits = torch.where(masks, -wide, wide)
    wrong = wrong_logits.sigmoid()  # probability of the other answer
    entropy = F.softplus(wrong_logits)
    weight = torch.where(masks, alpha, 1 - alpha) * wrong.square()
    focal = (weight * entropy).mean((1, 2))
    inside = masks.sum((1, 2)).float()
    missed = (wrong * masks).sum((1, 2))
    hits = inside - missed
    sizes = hits + (wrong.sum((1, 2)) - missed) + inside + 1  # predicted, target, smoothing
    doubled = 2 * hits + 1
    dice = 1 - doubled / sizes
    if not need_gradient:
        return focal, dice
    right = 1 - wrong
    of_focal = weight * (2 * right * entropy + wrong) / masks[0].numel()
    of_focal = torch.where(masks, -of_focal, of_focal)
    outside_slope = (doubled / sizes.square())[:, None, None]
    of_dice = wrong * right * torch.where(masks, outside_slope - (2 / sizes)[:, None, None], outside_slope)
    return focal, dice, _to_size_of(of_focal, logits), _to_size_of(of_dice, logits)


def _to_size_of(gradient: Tensor, logits: Tensor) -> Tensor:
    """The gradient of upsampled logits (c, H, W) as that of the logits (c, h, w)."""
    down, across = (resize_matrix(*sizes, gradient.device) for sizes in zip(gradient.shape[1:], logits.shape[1:]))
    narrow = gradient.flatten(0, 1) @ across
    return (down.T @ narrow.view(*gradient.shape[:2], -1)).to(logits.dtype)


# ---- at points ----


def point_losses(
    logits: Tensor, masks: Tensor, index: Tensor, options: MaskLosses, generator: Optional[torch.Generator] = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (mean over points) and dice loss at `options.points` points per mask (Mask2Former, section 3.3; PointRend).

    Args and return values as `full_losses`.
    """
    with torch.no_grad():
        points = _uncertain_points(logits.detach().float(), options, generator)
        truth = bilinear_points_of(masks, index, points)
    sampled = _sample(logits.float(), points)
    entropy = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(1)
    probs = sampled.sigmoid()
    dice = 1 - (2 * (probs * truth).sum(1) + 1) / (probs.sum(1) + truth.sum(1) + 1)
    return entropy, dice


def bilinear_points_of(masks: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """(M, P): mask `index[m]` at points (M, P, 2); as many masks at a time as `CHUNK_ELEMENTS` allows."""
    step = max(1, CHUNK_ELEMENTS.get(masks.device.type, 2**22) * 4 // max(1, masks[0].numel()))
    return torch.cat([bilinear_points(masks[where], part) for where, part in zip(index.split(step), points.split(step))])


def _uncertain_points(logits: Tensor, options: MaskLosses, generator) -> Tensor:
    """(M, P, 2) x and y in 0..1: most of them where the logits are closest to 0, the rest anywhere."""
    count = len(logits)
    candidates = torch.rand(count, int(options.points * options.oversample), 2, device=logits.device, generator=generator)
    chosen = int(options.importance * options.points)
    best = (-_sample(logits, candidates).abs()).topk(chosen, 1).indices
    found = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    anywhere = torch.rand(count, options.points - chosen, 2, device=logits.device, generator=generator)
    return torch.cat([found, anywhere], 1)


def _sample(logits: Tensor, points: Tensor) -> Tensor:
    """Logits (M, h, w) at points (M, P, 2) -> (M, P)."""
    return F.grid_sample(logits[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]
