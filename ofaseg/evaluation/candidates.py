"""From class maps to a label map by candidates: which classes are in the photo, where each is, which lies on top (SimSeg, section 3.3).

The scores of the whole photo choose a few classes; each one's map is made binary by a refinement (`ofaseg.evaluation.refine`),
closed, brought to the photo's size and painted; what nobody claims is background. Scores come first: no refinement runs for
a class that is not chosen.
"""

from typing import Sequence, Union

import torch
from torch import Tensor

from ofaseg.evaluation.refine import close_holes, nearest_resize, refine_masks
from ofaseg.evaluation.zero_shot_settings import ZeroShotSettings
from ofaseg.structures import DenseOutput, SegmentationOutput
from ofaseg.utils.threads import one_core_each

CLOSING_KERNEL = 7
"""Side in pixels of the closing of masks."""


def candidate_classes(scores: Tensor, settings: ZeroShotSettings) -> list[tuple[int, float]]:
    """Classes that a photo holds, with their scores, best first.

    Among the `top_m` best the threshold is mean + `std_factor` x (unbiased) standard deviation. The `candidates` best are
    asked, up to the first below it; the background uses a place, but is never a candidate. Equal scores come in the order of ids.

    Args:
        scores: (K,) score of each class in the photo.
    """
    ordered, ids = scores.float().sort(descending=True, stable=True)
    top = ordered[: settings.top_m]
    threshold = top.mean() + settings.std_factor * (top.std() if len(top) > 1 else 0.0)
    passes = (top >= threshold).tolist()
    result = []
    for k, score, passed in list(zip(ids.tolist(), top.tolist(), passes))[: settings.candidates]:
        if k == settings.background_class:
            continue
        if not passed:
            break
        result.append((k, score))
    return result


def foreground_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Class maps (M, h, w) repeated to `size`, a multiple of (h, w), each stretched to 0..1; a map of one value becomes 0.

    The smallest and largest value of a map are the same before and after repeating.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    stretched = torch.where(high > low, (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny), 0.0)
    rows, columns = size[0] // maps.shape[1], size[1] // maps.shape[2]
    return stretched.repeat_interleave(rows, 1).repeat_interleave(columns, 2)


def paint(masks: Tensor, candidates: Sequence[tuple[int, float]], under: Union[int, Tensor] = 0) -> Tensor:
    """Masks (M, H, W) bool of the candidates -> (H, W) long class ids: the best score wins, of equal ones the lower id.

    Args:
        under: what stands where no mask is: the background's id, whose score is 0, so that scores of 0 or less lose against it; or,
            for classes without a background, a label map (H, W).
    """
    if isinstance(under, Tensor):
        label_map = under.clone()
    else:
        label_map = torch.full(masks.shape[1:], under, dtype=torch.long, device=masks.device)
    for m in sorted(range(len(candidates)), key=lambda m: (candidates[m][1], -candidates[m][0])):
        k, score = candidates[m]
        if score > 0 or isinstance(under, Tensor):
            label_map.masked_fill_(masks[m], k)
    return label_map


def segment_by_candidates(
    output: DenseOutput,
    images: Tensor,
    native_sizes: Sequence[tuple[int, int]],
    settings: ZeroShotSettings,
    refine: str = "dense_crf",
    threshold: float = 0.5,
) -> list[SegmentationOutput]:
    """One SegmentationOutput per photo, at its native size. Without a background class, pixels that no mask claims take their patch's
    best class.

    Args:
        output: class_logits (B, K, h, w), cosines of patches and classes, and image_scores (B, K).
        images: (B, H, W, 3) uint8, the photos at the model's size.
        native_sizes: B pairs (height, width).
        refine: how a map becomes a mask, a name of `ofaseg.evaluation.refine`.
        threshold: for refinements that cut a map in 0..1.

    Raises:
        ValueError: no image scores, or an unknown refinement.
    """
    if output.image_scores is None:
        raise ValueError("choosing candidates needs scores of whole photos, which this model does not give")
    # one transfer for the batch instead of one per photo
    photos = list(zip(output.class_logits, output.image_scores.float().cpu(), images, native_sizes))

    def segment(photo) -> SegmentationOutput:
        return _segment_photo(*photo, settings, refine, threshold)

    return one_core_each(segment, photos, output.class_logits.device)


def _segment_photo(
    logits: Tensor, scores: Tensor, image: Tensor, size: tuple[int, int], settings: ZeroShotSettings, refine: str, threshold: float
) -> SegmentationOutput:
    """As `segment_by_candidates`, for logits (K, h, w), scores (K,) and image (H, W, 3) of one photo."""
    size = (int(size[0]), int(size[1]))
    chosen = candidate_classes(scores, settings)
    masks = torch.zeros(0, *size, dtype=torch.bool, device=logits.device)
    if chosen:
        maps = foreground_maps(logits[[k for k, _ in chosen]].float(), tuple(image.shape[:2]))
        masks = refine_masks(refine, image, maps, threshold)
        masks = nearest_resize(close_holes(masks, CLOSING_KERNEL), size)
    under = settings.background_class
    if under is None:
        under = nearest_resize(logits.argmax(0), size)
    return SegmentationOutput(label_map=paint(masks, chosen, under))
