"""From mask proposals (`mask_proposals`) to panoptic and instance segmentations, as FreeSeg makes them.

The rules are those of the published code, which differ from Mask2Former's: a class map decides which pixels a query may claim,
scores are sharpened by a small temperature, and there is no limit on the number of objects. Where that code departs from what it
says it does, `MaskRules` has the switch.

Functions take one image: the photos of a batch differ in size. Queries are handled together, and each image waits for the device
once, when the number of its segments is needed.
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from ofaseg.evaluation.mask_geometry import boxes_of_masks, count_true, last_true, resize_nearest, segment_areas_and_boxes
from ofaseg.evaluation.mask_proposals import CHUNK_ELEMENTS, Proposals, class_map, counted_scores
from ofaseg.structures import InstanceSegmentation, PanopticSegmentation

SUPPRESSIONS = ("official", "per_class", "off")


@dataclass(frozen=True)
class MaskRules:
    """Which proposals become segments; the defaults are those of the published code.

    Attributes:
        overlap_threshold: least share of a query's mask that lies on pixels of its own class.
        score_threshold: least sharpened score of an object, 0..1.
        temperature: class scores are divided by it before the softmax that sharpens them.
        mask_logit: objects are compared by the pixels whose mask logit is at least this (0.5 as published, probability 0.62).
        panoptic_probability: a panoptic segment claims pixels whose mask probability is at least this.
        drop_last_class: the last class cannot be an object, as in the published code.
        suppression: "official" drops the largest of all objects of an image where the others together cover more than
            `suppression_ratio` of its area, wherever they lie; "per_class" compares objects of one class, by the pixels of the
            largest that others cover, which is what the published code meant; "off" drops none.
        suppression_ratio: see `suppression`.
    """

    overlap_threshold: float = 0.5
    score_threshold: float = 0.5
    temperature: float = 0.01
    mask_logit: float = 0.5
    panoptic_probability: float = 0.5
    drop_last_class: bool = True
    suppression: str = "official"
    suppression_ratio: float = 0.8

    def __post_init__(self):
        if self.suppression not in SUPPRESSIONS:
            raise ValueError(f"unknown suppression {self.suppression!r}; choose from {', '.join(SUPPRESSIONS)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} must be above 0")


def panoptic_segments(
    proposals: Proposals,
    thing: Tensor,
    size: tuple[int, int],
    rules: Optional[MaskRules] = None,
    label_map: Optional[Tensor] = None,
) -> PanopticSegmentation:
    """Segments that part one image.

    In the order of the queries: a query claims the pixels of its mask whose best class is its own. It is left out where that is
    too small a part of the mask, or where it is a thing with a low score. Queries of one stuff class become one segment; where
    two claim a pixel, the later has it.

    Args:
        proposals: of one image.
        thing: (K,) bool, True for countable classes.
        size: (H, W) of the result; ids are resized to it by nearest neighbour.
        rules: None for the published ones.
        label_map: (h, w) of `class_map(proposals)`, where the caller has it.

    Returns:
        ids 1, 2, ... in the order of the queries; those that vanish in the resize are left out of the list.
    """
    rules = rules or MaskRules()
    label_map = class_map(proposals) if label_map is None else label_map
    scores, labels = (counted_scores(proposals) / rules.temperature).softmax(-1).max(-1)
    masks = proposals.mask_logits.sigmoid() >= rules.panoptic_probability
    full_area = count_true(masks)
    masks.logical_and_(label_map == labels[:, None, None])
    area = count_true(masks)
    is_thing = thing.to(labels.device).bool()[labels]
    keep = proposals.valid & (area > 0) & (area.double() / full_area.clamp(min=1) >= rules.overlap_threshold)
    keep &= ~is_thing | (scores >= rules.score_threshold)
    # the segment of a query is that of the first kept query of the same stuff class, or its own
    merges = (labels[:, None] == labels) & ~is_thing & keep & keep[:, None]
    order = torch.arange(len(labels), device=labels.device)
    first = torch.where(merges.any(1), merges.int().argmax(1), order)
    ids = torch.where(keep, torch.cumsum(keep & (first == order), 0)[first], 0)
    last = last_true(masks, keep)
    segment_map = torch.where(last >= 0, ids[last.clamp(min=0)], 0).int()
    segment_map = resize_nearest(segment_map, size)
    areas, boxes = segment_areas_and_boxes(segment_map, len(labels))
    table = torch.stack([ids, first == order, labels, is_thing, scores], 1).double()
    return _as_segments(segment_map, torch.cat([table, areas[1:, None], boxes[1:]], 1).cpu())


def _as_segments(segment_map: Tensor, table: Tensor) -> PanopticSegmentation:
    """The dicts of `PanopticSegmentation` from a (Q, 10) table on the host.

    A row is a query's (id, opens a segment, class, thing, score), followed by the (area, box) of segment `row + 1`.
    """
    rows = table.tolist()
    segments = []
    for segment_id, opens, class_id, is_thing, score, *_ in rows:
        area, *box = rows[int(segment_id) - 1][5:]
        if segment_id and opens and area:
            about = {"id": int(segment_id), "class_id": int(class_id), "is_thing": bool(is_thing), "is_crowd": False}
            segments.append(about | {"area": int(area), "box": box, "score": score})
    return PanopticSegmentation(segment_map, segments)


def instances(
    proposals: Proposals,
    size: tuple[int, int],
    thing: Optional[Tensor] = None,
    rules: Optional[MaskRules] = None,
    label_map: Optional[Tensor] = None,
) -> InstanceSegmentation:
    """Scored objects of one image, in the order of the queries.

    Args:
        proposals: of one image.
        size: (H, W) of the result; masks are resized to it by nearest neighbour.
        thing: (K,) bool, classes that can be objects; None: all.
        rules: None for the published ones.
        label_map: (h, w) of `class_map(proposals)`, where the caller has it.
    """
    rules = rules or MaskRules()
    label_map = class_map(proposals) if label_map is None else label_map
    sharp = (counted_scores(proposals) / rules.temperature).softmax(-1)
    sharp = sharp[:, :-1] if rules.drop_last_class and sharp.shape[1] > 1 else sharp
    scores, labels = sharp.max(-1)
    masks = proposals.mask_logits >= rules.mask_logit
    area = count_true(masks)
    own = count_true((label_map == labels[:, None, None]).logical_and_(masks))
    keep = proposals.valid & (scores > rules.score_threshold) & (own.double() / area.clamp(min=1) > rules.overlap_threshold)
    if thing is not None:
        keep &= thing.to(labels.device).bool()[labels]
    keep &= ~_suppressed(masks, area, labels, keep, rules)
    kept = keep.nonzero()[:, 0]  # the one wait for the device
    logits = proposals.mask_logits[kept]
    final = logits > 0
    inside = (logits.sigmoid() * final).flatten(1).sum(1) / (count_true(final) + 1e-6)
    masks = resize_nearest(final, size)
    return InstanceSegmentation(masks, labels[kept], scores[kept] * inside, boxes_of_masks(masks))


def _suppressed(masks: Tensor, area: Tensor, labels: Tensor, keep: Tensor, rules: MaskRules) -> Tensor:
    """(Q,) bool: the kept queries that `MaskRules.suppression` drops."""
    if rules.suppression == "off":
        return torch.zeros_like(keep)
    order = torch.arange(len(area), device=area.device)
    if rules.suppression == "official":
        judged = torch.where(keep, area, -1).argmax(0, keepdim=True)  # the first of equally large ones
        others = last_true(masks, keep & (order != judged)) >= 0
        covered = count_true(others[None])
        largest = keep & (order == judged)
    else:
        together = keep & keep[:, None] & (labels == labels[:, None])
        judged, largest = order, keep & (torch.where(together, area, -1).argmax(1) == order)
        covered = _covered(masks, together & (order != order[:, None]))
    share = torch.zeros_like(area, dtype=torch.float64)
    share[judged] = covered.double() / area[judged].clamp(min=1)
    return largest & (share > rules.suppression_ratio)


def _covered(masks: Tensor, others: Tensor) -> Tensor:
    """(Q,) long: pixels of each of (Q, h, w) masks that some mask of its row of `others` (Q, Q) holds too."""
    pixels, weights, covered = masks.flatten(1), others.float(), torch.zeros(len(masks), dtype=torch.long, device=masks.device)
    step = max(1, CHUNK_ELEMENTS // max(1, len(masks)))
    for start in range(0, pixels.shape[1], step):
        part = pixels[:, start : start + step]
        covered += (((weights @ part.float()) > 0) & part).sum(1)
    return covered
