"""Class scores of mask proposals averaged over several looks at a photo: sliding windows, mirror images, sizes.

Every look has queries of its own, so that masks cannot be averaged; what they add up to can: the score of a class at a pixel is the
sum over queries of class score times mask probability. It is averaged over windows and mirror images at each size of the photo, then
over sizes at the size of the result. Rows are made in bands: only masks on the model's grid are kept, and never all classes of all
pixels, unless they are asked for.
"""

from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.evaluation.mask_proposals import CHUNK_ELEMENTS
from ofaseg.evaluation.postprocess import source_rows


class View(NamedTuple):
    """The proposals of one look at a part of a photo.

    Attributes:
        mask_logits: (Q, h, w) on the model's grid.
        class_scores: (Q, K), zero for queries that count for nothing.
        padded_size: (H, W) of the model's input with its padding, which the grid covers.
        size: (H, W) of the part without padding.
        corner: (top, left) of the part in the photo at this size.
        mirrored: whether the model saw it mirrored left to right.
    """

    mask_logits: Tensor
    class_scores: Tensor
    padded_size: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    mirrored: bool = False


class SizedPhoto(NamedTuple):
    """A photo at one size (H, W) and the views that cover it."""

    size: tuple[int, int]
    views: list[View]


def averaged_class_map(photos: Sequence[SizedPhoto], size: tuple[int, int]) -> Tensor:
    """(H, W) long: the class of the highest averaged score at every pixel, from one photo at several sizes.

    With one view it is the class map of `mask_proposals.class_map`, but for pixels whose two best scores are equal up to rounding.
    """
    height, width = int(size[0]), int(size[1])
    num_classes = photos[0].views[0].class_scores.shape[1]
    result = torch.empty(height, width, dtype=torch.long, device=photos[0].views[0].class_scores.device)
    step = max(1, CHUNK_ELEMENTS // (width * num_classes))
    for start in range(0, height, step):
        end = min(start + step, height)
        result[start:end] = score_rows(photos, (height, width), start, end).argmax(0)
    return result


def averaged_scores(photos: Sequence[SizedPhoto], size: tuple[int, int]) -> Tensor:
    """(K, H, W) averaged scores of all classes; memory grows with K * H * W."""
    return score_rows(photos, (int(size[0]), int(size[1])), 0, int(size[0]))


def score_rows(photos: Sequence[SizedPhoto], size: tuple[int, int], first: int, end: int) -> Tensor:
    """(K, end - first, W): rows `first` to `end` - 1 of the averaged scores at `size` (H, W).

    Scores are resized bilinearly (align_corners False), as the published code resizes them.
    """
    total = None
    for photo in photos:
        rows = photo.size[0]
        low, weight = source_rows(rows, size[0], "cpu")
        low, weight = low[first:end], weight[first:end]
        high = (low + 1).clamp(max=rows - 1)
        start = int(low[0])
        scores = _rows_at_one_size(photo, start, int(high[-1]) + 1)
        if tuple(photo.size) != tuple(size):
            low, high, weight = (values.to(scores.device) for values in (low - start, high - start, weight))
            scores = torch.lerp(scores[:, low], scores[:, high], weight[:, None])
            scores = F.interpolate(scores[None], size=(end - first, size[1]), mode="bilinear", align_corners=False)[0]
        else:
            scores = scores[:, : end - first]
        total = scores if total is None else total + scores
    return total / len(photos)


def _rows_at_one_size(photo: SizedPhoto, first: int, end: int) -> Tensor:
    """(K, end - first, W) scores of some rows of a photo at its own size: the mean of the views that hold a pixel."""
    scores = photo.views[0].class_scores
    total = scores.new_zeros(scores.shape[1], end - first, photo.size[1])
    count = scores.new_zeros(end - first, photo.size[1])
    for view in photo.views:
        (top, left), (height, width) = view.corner, view.size
        start, stop = max(first, top), min(end, top + height)
        if start >= stop:
            continue
        masks = _probabilities(view, start - top, stop - top)
        masks = masks.flip(-1) if view.mirrored else masks
        total[:, start - first : stop - first, left : left + width] += torch.einsum("qk,qhw->khw", view.class_scores, masks)
        count[start - first : stop - first, left : left + width] += 1
    return total / count


def _probabilities(view: View, first: int, end: int) -> Tensor:
    """(Q, end - first, W) mask probabilities of some rows of a view: those rows of `mask_proposals.upsample_masks`, through a sigmoid."""
    logits = view.mask_logits.float()
    rows, (height, width) = logits.shape[1], view.padded_size
    position = torch.arange(first, end, dtype=torch.float32) * ((rows - 1) / max(1, height - 1))
    low = position.floor().clamp(max=rows - 1)
    weight = (position - low).to(logits.device)
    low = low.long().to(logits.device)
    part = torch.lerp(logits[:, low], logits[:, (low + 1).clamp(max=rows - 1)], weight[:, None])
    part = F.interpolate(part[None], size=(end - first, width), mode="bilinear", align_corners=True)[0]
    return part[..., : view.size[1]].sigmoid()
