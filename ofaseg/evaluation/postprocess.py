"""From class scores on the patch grid to a segmentation at the photo's own size; functions on (K, h, w) and (B, K, h, w).

Everything after the model that official evaluation does stands here once, for every method: resizing, flip average,
feature propagation (IFSeg's kNN diffusion of class probabilities). Nothing here knows a model.
"""

from dataclasses import dataclass
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.evaluation.candidates import segment_by_candidates
from ofaseg.evaluation.class_refinement import CLASS_REFINEMENTS, refine_classes
from ofaseg.evaluation.dense_crf import compiled_crf
from ofaseg.evaluation.many_classes import argmax_of_many
from ofaseg.evaluation.refine import REFINEMENTS
from ofaseg.evaluation.tiling import check_scales
from ofaseg.evaluation.zero_shot_settings import ZeroShotSettings
from ofaseg.structures import DenseOutput, SegmentationOutput

CHUNK_ELEMENTS = 2**22
"""Full-size score values held at once while the best class is looked for (16 MB in float32)."""

PRUNE_ELEMENTS = 2**22
"""From this many full-size score values on, a CPU looks for the classes that can win first."""

MANY_CLASSES = 512
"""From this many classes on, those that can win are looked for cell by cell, on any device."""


@dataclass(frozen=True)
class PostProcess:
    """What happens to class logits after the model; the defaults do nothing but resize and take the best class.

    Attributes:
        resnet_topk: K of feature propagation, neighbours per patch with the patch itself (IFSeg: 3).
        resnet_iters: rounds of feature propagation; 0 switches it off (IFSeg: 25).
        resnet_prob_temperature: logits are divided by this before the softmax of feature propagation.
        flip_average: average the probabilities with those of the mirrored image (the caller runs the model twice).
        return_scores: also hand on (K, H, W) probabilities; memory grows with K * H * W.
        candidates: choose classes by their scores in the whole photo and paint their masks; None: the best class per pixel.
        refine: with `candidates` how maps become masks, a name of `ofaseg.evaluation.refine` (none: the threshold alone); else what
            happens to class probabilities at the model's size: none, or a name of `class_refinement.CLASS_REFINEMENTS`.
        threshold: where refinements cut a map in 0..1 (with `candidates`).
        window: side in pixels of sliding windows, 0 for whole photos; the caller runs the model so (`ofaseg.evaluation.tiling`).
        window_stride: pixels between windows; 0 for half a window.
        scales: factors of the photo's size whose outputs are averaged, by the caller too.
    """

    resnet_topk: int = 3
    resnet_iters: int = 0
    resnet_prob_temperature: float = 1.0
    flip_average: bool = False
    return_scores: bool = False
    candidates: Optional[ZeroShotSettings] = None
    refine: str = "none"
    threshold: float = 0.5
    window: int = 0
    window_stride: int = 0
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        """Raises ValueError for a value out of range or a refinement that there is not, ImportError for one whose package is absent."""
        check_scales(self.scales)
        if self.resnet_iters < 0 or self.resnet_topk < 1 or self.resnet_prob_temperature <= 0:
            raise ValueError(
                f"resnet_topk {self.resnet_topk}, resnet_iters {self.resnet_iters}, temperature {self.resnet_prob_temperature}: "
                "need topk >= 1, iters >= 0 and a temperature above 0"
            )
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold}: it cuts maps in 0..1")
        known = ("none", *(CLASS_REFINEMENTS if self.candidates is None else REFINEMENTS))
        if self.refine not in known:
            raise ValueError(f"refine {self.refine!r}: the maps of this model can be refined by {', '.join(known)}")
        if self.refine == "pydensecrf":
            compiled_crf()  # now, not at the first photo


def segmentations(
    output: DenseOutput,
    native_sizes: Sequence[tuple[int, int]],
    post: Optional[PostProcess] = None,
    flipped: Optional[DenseOutput] = None,
    images: Optional[Tensor] = None,
) -> list[SegmentationOutput]:
    """One SegmentationOutput per image, at its native size.

    Args:
        output: class_logits (B, K, h, w); features (B, F, h, w) when feature propagation is on.
        native_sizes: B pairs (H, W).
        post: what to do; None for the defaults of `PostProcess`.
        flipped: output of the same model for the mirrored images, needed by (and only with) ``post.flip_average``.
        images: (B, H, W, 3) uint8, the photos at the model's size; needed by ``post.candidates`` and ``post.refine``.

    Raises:
        ValueError: feature propagation without features, flip average without `flipped`, refinement without `images`, an
            unknown refinement, or a wrong number of sizes.
    """
    post = post or PostProcess()
    logits = output.class_logits.float()
    if len(native_sizes) != len(logits):
        raise ValueError(f"{len(native_sizes)} native sizes for a batch of {len(logits)}")
    if post.flip_average != (flipped is not None):
        raise ValueError("flip_average and the output of the mirrored images go together; give both or neither")
    if images is None and (post.candidates is not None or post.refine != "none"):
        raise ValueError(f"refine {post.refine!r} reads the photos, but only class scores were given; set refine to none")
    if post.candidates is not None:
        output = _cosines(output, post, flipped)
        refine = "threshold" if post.refine == "none" else post.refine
        return segment_by_candidates(output, images, native_sizes, post.candidates, refine, post.threshold)
    is_probability = post.resnet_iters > 0 or post.flip_average or post.refine != "none"
    scores = logits
    if is_probability:
        scores = (logits / post.resnet_prob_temperature).softmax(1)
    if flipped is not None:
        scores = flip_average(scores, (flipped.class_logits.float() / post.resnet_prob_temperature).softmax(1))
    if post.resnet_iters:
        if output.features is None:
            raise ValueError("feature propagation needs image features, but the model returned none; set resnet_iters to 0")
        scores = feature_propagation(scores, output.features, post.resnet_topk, post.resnet_iters)
    results = []
    for b, (score, size) in enumerate(zip(scores, native_sizes)):
        size = (int(size[0]), int(size[1]))
        if post.refine != "none":
            results.append(_refined(score, images[b], size, post))
            continue
        full = None
        if post.return_scores:
            full = resize_scores(score, size)
            full = full if is_probability else full.softmax(0)
        results.append(SegmentationOutput(label_map=argmax_at_size(score, size), class_scores=full))
    return results


def _refined(probs: Tensor, image: Tensor, size: tuple[int, int], post: PostProcess) -> SegmentationOutput:
    """The segmentation of one photo (H, W, 3) after refining its class probabilities (K, h, w); classes that win nowhere have score 0."""
    ids, refined = refine_classes(post.refine, image, probs)
    full = None
    if post.return_scores:
        full = probs.new_zeros(len(probs), *size).index_copy_(0, ids, resize_scores(refined, size))
    return SegmentationOutput(label_map=ids[argmax_at_size(refined, size)], class_scores=full)


def _cosines(output: DenseOutput, post: PostProcess, flipped: Optional[DenseOutput]) -> DenseOutput:
    """Class maps and photo scores for candidates, averaged over mirrored photos and propagated where `post` says so.

    They stay what the model computes: a softmax over all classes would let absent classes speak.
    """
    maps, scores = output.class_logits.float(), output.image_scores
    if flipped is not None:
        maps = flip_average(maps, flipped.class_logits.float())
        scores = None if scores is None else (scores + flipped.image_scores) / 2
    if post.resnet_iters:
        maps = feature_propagation(maps, output.features, post.resnet_topk, post.resnet_iters)
    return output._replace(class_logits=maps, image_scores=scores)


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize (align_corners False, no antialias) of (K, h, w) or (B, K, h, w) to `size` = (H, W), in float32."""
    batched = scores if scores.dim() == 4 else scores[None]
    resized = F.interpolate(batched.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return resized if scores.dim() == 4 else resized[0]


def flip_average(scores: Tensor, flipped_scores: Tensor) -> Tensor:
    """Mean of (..., h, w) scores and the scores of the mirrored image, mirrored back."""
    return (scores + flipped_scores.flip(-1)) / 2


def argmax_at_size(class_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The best class per pixel after a bilinear resize, without holding the resized scores; thousands of classes as `argmax_of_many`.

    Equal to ``resize_scores(class_logits, size).argmax(0)`` but for pixels whose two best scores are equal up to rounding.

    Args:
        class_logits: (K, h, w) logits or probabilities.
        size: (H, W).

    Returns:
        (H, W) long.
    """
    if len(class_logits) >= MANY_CLASSES:
        return argmax_of_many(class_logits, size)
    class_logits = class_logits.float()
    num_classes, rows, _ = class_logits.shape
    height, width = int(size[0]), int(size[1])
    result = torch.empty(height, width, dtype=torch.long, device=class_logits.device)
    low, weight = source_rows(rows, height, class_logits.device)
    prune = class_logits.device.type == "cpu" and num_classes > 2 and num_classes * height * width >= PRUNE_ELEMENTS
    for start, stop in _row_chunks(low, num_classes * width, bands=prune):
        first, last = (int(low[start]), int(low[stop - 1])) if prune else (0, rows - 1)
        source, names = class_logits[:, first : min(last + 2, rows)], None
        if prune:
            names = _possible_winners(source)
            source = source[names]
        upper = (low[start:stop] - first).clamp(max=source.shape[1] - 1)
        lower = (upper + 1).clamp(max=source.shape[1] - 1)
        band = torch.lerp(source[:, upper], source[:, lower], weight[start:stop, None])  # (K', r, w)
        best = _best_class(F.interpolate(band[None], size=(stop - start, width), mode="bilinear", align_corners=False)[0])
        result[start:stop] = best if names is None else names[best]
    return result


def _best_class(scores: Tensor) -> Tensor:
    """argmax over dimension 0; on the CPU one comparison per class, which streams where the strided reduction hops."""
    if scores.device.type != "cpu" or len(scores) > 64:
        return scores.argmax(0)
    best, winner = scores[0].clone(), torch.zeros(scores.shape[1:], dtype=torch.long)
    for k in range(1, len(scores)):
        winner.masked_fill_(scores[k] > best, k)
        torch.maximum(best, scores[k], out=best)
    return winner


def source_rows(rows: int, height: int, device) -> tuple[Tensor, Tensor]:
    """For every output row the upper source row and the weight of the one below (align_corners False)."""
    position = ((torch.arange(height, dtype=torch.float32) + 0.5) * (rows / height) - 0.5).clamp(min=0)
    low = position.floor().clamp(max=rows - 1)
    return low.long().to(device), (position - low).clamp(max=1).to(device)


def _row_chunks(low: Tensor, elements_per_row: int, bands: bool) -> list[tuple[int, int]]:
    """Row ranges of at most CHUNK_ELEMENTS; with `bands` each is made of output rows that share their source rows."""
    height = len(low)
    step = max(1, CHUNK_ELEMENTS // elements_per_row)
    if not bands:
        return [(i, min(i + step, height)) for i in range(0, height, step)]
    edges = [0, *(torch.nonzero(low[1:] != low[:-1]).flatten() + 1).tolist(), height]
    return [(i, min(i + step, b)) for a, b in zip(edges, edges[1:]) for i in range(a, b, step)]


def _possible_winners(source: Tensor) -> Tensor:
    """Ids of the classes that can be best somewhere in a band of (K, 1 or 2, w) source scores.

    Interpolated scores are convex mixtures of the corners of a cell, so a class that is below one rival at all corners of
    every cell wins nowhere. The rival is the class with the largest corner sum.
    """
    corners = torch.cat([source, source[:, -1:]], 1)[:, :2] if source.shape[1] < 2 else source
    corners = torch.cat([corners[:, :, :-1], corners[:, :, 1:]], 1) if corners.shape[2] > 1 else corners  # (K, n, cells)
    rival = corners.sum(1).argmax(0)  # (cells,)
    rival_scores = corners.gather(0, rival[None, None].expand(1, *corners.shape[1:]))
    return torch.nonzero((~(corners < rival_scores)).flatten(1).any(1)).flatten()


def feature_propagation(probs: Tensor, features: Tensor, topk: int, iterations: int) -> Tensor:
    """IFSeg's post-processing: every patch takes the mean of the probabilities of its nearest patches, several times.

    Neighbours are the `topk` patches of highest cosine similarity of their image features, the patch itself among them;
    all patches change at once and the neighbours stay: p = A^n p0 with a 0 or 1/topk matrix A (paper section 3.4).

    Args:
        probs: (B, K, h, w) class probabilities.
        features: (B, F, h, w) features of the image encoder.
        topk: neighbours per patch, at most h * w.
        iterations: n.

    Returns:
        (B, K, h, w) probabilities, float32.
    """
    batch, num_classes, height, width = probs.shape
    if features.shape[0] != batch or features.shape[2:] != probs.shape[2:]:
        raise ValueError(f"features {tuple(features.shape)} do not lie on the grid of the probabilities {tuple(probs.shape)}")
    patches = height * width
    topk = min(topk, patches)
    neighbours = nearest_patches(features, topk)  # (B, P, topk)
    state = probs.float().flatten(2).transpose(1, 2).reshape(batch * patches, num_classes)
    base = torch.arange(batch, device=probs.device).mul_(patches)[:, None]
    flat = [(neighbours[..., k] + base).reshape(-1) for k in range(topk)]
    state, total, part = state.clone(), torch.empty_like(state), torch.empty_like(state)
    for _ in range(iterations):
        torch.index_select(state, 0, flat[0], out=total)
        for index in flat[1:]:
            total.add_(torch.index_select(state, 0, index, out=part))
        state, total = total.div_(topk), state
    return state.view(batch, patches, num_classes).transpose(1, 2).reshape(batch, num_classes, height, width)


def nearest_patches(features: Tensor, topk: int) -> Tensor:
    """(B, P, topk) ids of the patches of highest cosine similarity for (B, F, h, w) features, the patch itself included."""
    rows = F.normalize(features.float().flatten(2).transpose(1, 2), dim=-1)  # (B, P, F)
    return torch.bmm(rows, rows.transpose(1, 2)).topk(topk, dim=-1).indices
