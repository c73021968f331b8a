"""Mask proposals, their class scores and the class maps they add up to (FreeSeg's inference).

A proposal is a query's soft mask with scores of K classes. Functions take one image, since the photos of a batch differ in size;
nothing waits for the device.
"""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.evaluation.postprocess import source_rows

CHUNK_ELEMENTS = 2**22
"""Score values of (pixel, class) or (query, pixel) pairs held at once, 16 MB in float32."""


class Proposals(NamedTuple):
    """The queries of one image.

    Attributes:
        mask_logits: (Q, h, w) float.
        class_scores: (Q, K) float in 0..1; rows need not add up to 1.
        valid: (Q,) bool, False for queries that count for nothing.
    """

    mask_logits: Tensor
    class_scores: Tensor
    valid: Tensor


def classify_masks(
    mask_logits: Tensor,
    class_logits: Tensor,
    clip_logits: Optional[Tensor] = None,
    clip_valid: Optional[Tensor] = None,
    base: Optional[Tensor] = None,
    ensemble_weight: float = 0.8,
) -> Proposals:
    """Class scores of mask proposals, merged with those of a CLIP model that saw the masked regions (FreeSeg section 3.4).

    With m the query's distribution and c CLIP's, the score of a base class is m^w c^(1-w), of a novel class m^(1-w) c^w. A mask
    without region has c = 1. With w <= 0 CLIP decides alone and masks without region are left out.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, K + 1), the last column stands for "no object".
        clip_logits: (Q, K) or (Q, K + 1), whose last column is left out; None: the scores are m.
        clip_valid: (Q,) bool, whether CLIP saw a region of the mask; None: all.
        base: (K,) bool, True for classes of the training; None: all count as novel.
        ensemble_weight: w.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    queries, num_classes = class_logits.shape[0], class_logits.shape[1] - 1
    if mask_logits.dim() != 3 or len(mask_logits) != queries:
        raise ValueError(f"masks {tuple(mask_logits.shape)} do not fit class logits {tuple(class_logits.shape)}")
    own = class_logits.float().softmax(-1)[:, :num_classes]
    everything = torch.ones(queries, dtype=torch.bool, device=own.device)
    if clip_logits is None:
        return Proposals(mask_logits.float(), own, everything)
    if clip_logits.shape[0] != queries or clip_logits.shape[1] not in (num_classes, num_classes + 1):
        raise ValueError(f"CLIP logits {tuple(clip_logits.shape)} do not fit {queries} masks and {num_classes} classes")
    if base is not None and base.shape != (num_classes,):
        raise ValueError(f"{tuple(base.shape)} marks of base classes for {num_classes} classes")
    clip_valid = everything if clip_valid is None else clip_valid.bool()
    clip = clip_logits.float()[:, :num_classes].softmax(-1)
    if ensemble_weight <= 0:
        return Proposals(mask_logits.float(), clip * clip_valid[:, None], clip_valid)
    clip = torch.where(clip_valid[:, None], clip, 1.0)
    w = ensemble_weight
    scores = own ** (1 - w) * clip**w
    if base is not None:
        scores = torch.where(base.to(own.device).bool(), own**w * clip ** (1 - w), scores)
    return Proposals(mask_logits.float(), scores, everything)


def upsample_masks(mask_logits: Tensor, padded_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """(..., Q, H, W) mask logits at the size of the network's input, without its padding, as the published code resizes them.

    Args:
        mask_logits: (Q, h, w) or (B, Q, h, w).
        padded_size: (H, W) of the padded input, to which the masks are stretched (bilinear, align_corners True).
        image_size: (H, W) of the photo in its upper left corner.
    """
    batched = mask_logits if mask_logits.dim() == 4 else mask_logits[None]
    full = F.interpolate(batched.float(), size=tuple(padded_size), mode="bilinear", align_corners=True)
    full = full[..., : image_size[0], : image_size[1]]
    return full if mask_logits.dim() == 4 else full[0]


def semantic_maps(proposals: Proposals) -> Tensor:
    """(K, h, w) scores of every class: sum over queries of class score times mask probability."""
    masks = proposals.mask_logits.sigmoid()
    return torch.einsum("qk,qhw->khw", counted_scores(proposals), masks)


def class_map(proposals: Proposals, size: Optional[tuple[int, int]] = None) -> Tensor:
    """The best class of every pixel, without holding the (K, H, W) scores.

    Equal to the argmax of `semantic_maps`, resized bilinearly (align_corners False) to `size` where that is given, but for
    pixels whose two best scores are equal up to rounding: the resize is linear, so the masks are resized instead.

    Args:
        size: (H, W) of the result; None for the masks' own.

    Returns:
        (H, W) long class ids.
    """
    masks, scores = proposals.mask_logits, counted_scores(proposals)
    queries, rows, width = masks.shape
    height, out_width = (rows, width) if size is None else (int(size[0]), int(size[1]))
    same = (rows, width) == (height, out_width)
    masks = masks if same else masks.sigmoid()
    low, weight = source_rows(rows, height, masks.device)
    low, high, weight = low, (low + 1).clamp(max=rows - 1), weight[:, None]
    step = max(1, CHUNK_ELEMENTS // (out_width * max(queries, scores.shape[1])))
    result = torch.empty(height, out_width, dtype=torch.long, device=masks.device)
    for start in range(0, height, step):
        band = slice(start, min(start + step, height))
        if same:
            part = masks[:, band].sigmoid()
        else:
            part = torch.lerp(masks[:, low[band]], masks[:, high[band]], weight[band])
            part = F.interpolate(part[None], size=(part.shape[1], out_width), mode="bilinear", align_corners=False)[0]
        result[band] = (part.flatten(1).T @ scores).argmax(1).view(-1, out_width)
    return result


def counted_scores(proposals: Proposals) -> Tensor:
    """(Q, K) class scores, zero for queries that count for nothing."""
    return proposals.class_scores * proposals.valid[:, None]
