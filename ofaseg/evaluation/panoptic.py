"""Panoptic quality (Kirillov et al. 2019, equation 1): PQ = sum of IoU of matched segments / (TP + FP / 2 + FN / 2), per class.

The rules are those of panopticapi, with which published numbers are made. A predicted and a true segment of one class match where
their IoU is above one half; pixels without truth do not count in the union. True crowds match nothing. A prediction that matches
nothing is left out where more than half of it lies on pixels without truth or on the crowd of its class.

Sums per class are all the state, so that batches and ranks add up. Two maps are compared by their runs along the rows: a photo has
a few thousand of them, where it has hundreds of thousands of pixels.
"""

import math
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from ofaseg.evaluation.evaluator import Evaluator, sum_over_ranks
from ofaseg.evaluation.semantic import harmonic_mean
from ofaseg.structures import SegmentationOutput
from ofaseg.vocabulary import ClassVocabulary

IOU_SUM, MATCHED, WRONG, MISSED = range(4)
"""Columns of the counts: sum of IoU, true positives, false positives, false negatives."""

HASH_BITS = 14
HASH_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xD1342543DE82EF95, 0xDA942042E4DD58B5], dtype=np.uint64).view(np.int64)
"""Odd numbers with bits in no pattern, for multiplicative hashing."""


class PanopticError(ValueError):
    """A segment map and its list of segments that do not belong together; the message names the segments."""


def overlaps(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels shared by each pair of ids.

    Args:
        truth, prediction: (H, W) integer ids from 0, below 2**31.

    Returns:
        true ids, predicted ids and their shared pixels, (N,) int64 each; pairs that share none are left out.

    Raises:
        PanopticError: different shapes, or a negative id.
    """
    if truth.shape != prediction.shape:
        raise PanopticError(f"segment maps of {prediction.shape} and {truth.shape} pixels; resize the prediction to the size of the truth")
    if not truth.size:
        return (np.zeros(0, dtype=np.int64),) * 3
    truth, prediction = truth.ravel(), prediction.ravel()
    ends = _run_ends(truth, prediction)
    first, second = truth.take(ends).astype(np.int64), prediction.take(ends).astype(np.int64)
    if min(first.min(), second.min()) < 0:
        raise PanopticError("a segment map holds a negative id; ids start at 1, and 0 is no segment")
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]
    lengths[0] += 1
    keys, shared = _sums_by_key(first << 32 | second, lengths)
    return keys >> 32, keys & 0xFFFFFFFF, shared.astype(np.int64)


def _run_ends(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(R,) ascending indices of the last pixel of every run in which neither of two (N,) maps changes; N > 0."""
    pixels = len(truth)
    is_end = np.zeros(-(-pixels // 8) * 8, dtype=bool)
    np.not_equal(truth[1:], truth[:-1], out=is_end[: pixels - 1])
    is_end[: pixels - 1] |= prediction[1:] != prediction[:-1]
    is_end[pixels - 1] = True
    eights = is_end.view(np.uint64)  # nearly all are 0; finding the others first is quicker than looking at every pixel
    some = np.flatnonzero(eights != 0)
    place = np.flatnonzero(eights[some].view(bool))
    return (some[place >> 3] << 3) + (place & 7)


def _sums_by_key(keys: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones of (N,) int64 keys and the sum of the weights of each, in no particular order.

    Few different keys among many are told apart by a hash several times faster than by sorting; where two of them share a
    slot, the next hash is tried, at last the keys are sorted.
    """
    for multiplier in HASH_MULTIPLIERS:
        slot = keys * multiplier >> 64 - HASH_BITS & 2**HASH_BITS - 1
        table = np.empty(2**HASH_BITS, dtype=np.int64)
        table[slot] = keys
        if (table[slot] == keys).all():
            sums = np.bincount(slot, weights=weights)
            taken = sums > 0
            return table[: len(sums)][taken], sums[taken]
    keys, number = np.unique(keys, return_inverse=True)
    return keys, np.bincount(number.ravel(), weights=weights)


def panoptic_counts(
    truth: np.ndarray, true_segments: Sequence[dict], prediction: np.ndarray, segments: Sequence[dict], num_classes: int
) -> np.ndarray:
    """(K, 4) float64 counts of one image, see `IOU_SUM` to `MISSED`.

    Args:
        truth: (H, W) ids of the true segments, 0 = no truth. Ids that are not in the list count as another class.
        true_segments: dicts with id, class_id and, where they differ from 0 and the pixels, is_crowd and area.
        prediction: (H, W) ids of the predicted segments, 0 = none.
        segments: dicts with id and class_id of every id of `prediction`, and of no other.
        num_classes: K.

    Raises:
        PanopticError: ids of the prediction without entry or the reverse, an id that stands twice, or a class outside 0..K-1.
    """
    true_ids, pred_ids, shared = overlaps(truth, prediction)
    true, pred = _Segments(true_segments, num_classes, "true"), _Segments(segments, num_classes, "predicted")
    t, p = true.rows(true_ids), pred.rows(pred_ids)  # row in the list of each pair; -1 for other ids
    pred_area = np.bincount(p[p >= 0], weights=shared[p >= 0], minlength=len(pred))
    _check_prediction(pred, pred_ids[p < 0], pred_area)
    true_area = np.bincount(t[t >= 0], weights=shared[t >= 0], minlength=len(true))
    true_area = np.array([s.get("area", area) for s, area in zip(true_segments, true_area)], dtype=np.float64)
    nothing = (true_ids == 0) & (p >= 0)
    on_nothing = np.bincount(p[nothing], weights=shared[nothing], minlength=len(pred))

    both = (t >= 0) & (p >= 0)
    t, p, shared = t[both], p[both], shared[both]
    same = true.classes[t] == pred.classes[p]
    union = pred_area[p] + true_area[t] - shared - on_nothing[p]
    iou = np.divide(shared, union, out=np.zeros(len(t)), where=union > 0)
    match = same & ~true.crowd[t] & (iou > 0.5)
    matched_true, matched_pred = np.zeros(len(true), dtype=bool), np.zeros(len(pred), dtype=bool)
    matched_true[t[match]] = matched_pred[p[match]] = True
    # several crowds of one class: the last of the list counts, as in panopticapi
    crowd_row = np.full(num_classes, -1)
    crowd_row[true.classes[true.crowd]] = np.flatnonzero(true.crowd)
    on_crowd = t == crowd_row[pred.classes[p]]
    excused = on_nothing + np.bincount(p[on_crowd], weights=shared[on_crowd], minlength=len(pred))

    counts = np.zeros((num_classes, 4))
    np.add.at(counts[:, IOU_SUM], pred.classes[p[match]], iou[match])
    counts[:, MATCHED] = np.bincount(pred.classes[matched_pred], minlength=num_classes)
    counts[:, WRONG] = np.bincount(pred.classes[~matched_pred & (excused <= 0.5 * pred_area)], minlength=num_classes)
    counts[:, MISSED] = np.bincount(true.classes[~matched_true & ~true.crowd], minlength=num_classes)
    return counts


class _Segments:
    """A list of segments as arrays: classes (N,) int64, crowd (N,) bool, in the order of the list."""

    def __init__(self, segments: Sequence[dict], num_classes: int, kind: str):
        self.kind = kind
        self.ids = np.array([s["id"] for s in segments], dtype=np.int64)
        self.classes = np.array([-1 if s["class_id"] is None else s["class_id"] for s in segments], dtype=np.int64)
        self.crowd = np.array([bool(s.get("is_crowd", False)) for s in segments], dtype=bool)
        self._order = np.argsort(self.ids)
        self._sorted = self.ids[self._order]
        bad = np.flatnonzero((self.classes < 0) | (self.classes >= num_classes))
        if len(bad):
            one = segments[bad[0]]
            raise PanopticError(f"the {kind} segment {one['id']} has class {one['class_id']}, outside 0..{num_classes - 1}; correct it")
        if (self._sorted[1:] == self._sorted[:-1]).any() or 0 in self.ids:
            raise PanopticError(f"the {kind} segments have the ids {self.ids.tolist()}; give each its own, from 1 on")

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Row of the list of each id, -1 for ids that are not in it."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        place = np.searchsorted(self._sorted, ids).clip(max=len(self.ids) - 1)
        return np.where(self._sorted[place] == ids, self._order[place], -1)


def _check_prediction(pred: _Segments, unlisted: np.ndarray, area: np.ndarray) -> None:
    if unlisted.any():
        found = sorted({int(i) for i in unlisted if i})
        raise PanopticError(f"the predicted map holds the ids {found[:5]}, which are not in the list of segments; add them to the list")
    if len(pred) and not area.all():
        absent = pred.ids[area == 0].tolist()
        raise PanopticError(f"the predicted segments {absent[:5]} have no pixel in the map; leave them out of the list")


def panoptic_scores(counts, vocabulary: ClassVocabulary, absent_as_zero: bool = False) -> dict:
    """PQ, SQ and RQ in 0..1 (nan where undefined) of (K, 4) counts.

    Args:
        counts: sums of `panoptic_counts`.
        vocabulary: K classes; its thing/stuff and base/novel marks add the grouped means.
        absent_as_zero: in the means over base and novel classes, count classes without any segment as 0, as FreeSeg's published
            code does; the other means always leave them out, as panopticapi does.

    Returns:
        dict with PQ, SQ, RQ; where marked the same with thing_, stuff_, base_, novel_ before, and harmonic_PQ; ``PQ_per_class``,
        ``SQ_per_class``, ``RQ_per_class`` (lists of K, nan for absent classes), ``class_names``, ``classes_scored``, and
        ``matched``, ``wrong``, ``missed``, lists of K numbers of segments.

    Raises:
        ValueError: counts of another shape.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.shape != (len(vocabulary), 4):
        raise ValueError(f"counts of shape {counts.shape} do not fit {len(vocabulary)} classes")
    iou, matched, wrong, missed = counts.T
    weight = matched + wrong / 2 + missed / 2
    present = weight > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        quality = {"PQ": iou / weight, "SQ": np.where(matched > 0, iou / matched, np.where(present, 0.0, math.nan)), "RQ": matched / weight}
    everything = np.ones(len(vocabulary), dtype=bool)
    groups = {"": (everything, False)}
    if any(vocabulary.thing) and not all(vocabulary.thing):
        thing = np.array(vocabulary.thing, dtype=bool)
        groups |= {"thing_": (thing, False), "stuff_": (~thing, False)}
    if any(vocabulary.novel):
        novel = np.array(vocabulary.novel, dtype=bool)
        groups |= {"base_": (~novel, absent_as_zero), "novel_": (novel, absent_as_zero)}
    scores = {}
    for name, (members, with_absent) in groups.items():
        for key, values in quality.items():
            of_group = np.where(present, values, 0.0)[members] if with_absent else values[members & present]
            scores[name + key] = float(of_group.mean()) if len(of_group) else math.nan
    if "novel_PQ" in scores:
        scores["harmonic_PQ"] = harmonic_mean(scores["base_PQ"], scores["novel_PQ"])
    scores |= {f"{key}_per_class": values.tolist() for key, values in quality.items()}
    numbers = {"matched": matched, "wrong": wrong, "missed": missed}
    scores |= {key: values.astype(int).tolist() for key, values in numbers.items()}
    return scores | {"class_names": list(vocabulary.names), "classes_scored": int(present.sum())}


class PanopticEvaluator(Evaluator):
    """PQ of the ``panoptic`` segmentations of the outputs.

    A batch needs ``native_segment_maps``, a list of (H_i, W_i) integer tensors, and ``native_segments``, a list of lists of dicts as
    `panoptic_counts` takes them.
    """

    def __init__(self, vocabulary: ClassVocabulary, absent_as_zero: bool = False):
        self.vocabulary, self.absent_as_zero = vocabulary, absent_as_zero
        self.reset()

    def reset(self) -> None:
        self._counts = np.zeros((len(self.vocabulary), 4))
        self._images = 0

    def update(self, outputs: list[SegmentationOutput], batch: dict) -> None:
        """Raises ValueError for rows without segments or outputs without panoptic segmentation, PanopticError as `panoptic_counts`."""
        maps, lists = batch.get("native_segment_maps"), batch.get("native_segments")
        if maps is None or lists is None or not len(maps) == len(lists) == len(outputs):
            raise ValueError("these rows carry no segments, so PQ cannot be scored; evaluate a split with segment_map and segments")
        for output, truth, true_segments in zip(outputs, maps, lists):
            if output.panoptic is None:
                raise ValueError("the model made no panoptic segmentation; score mIoU, or choose a model that parts photos into segments")
            found = output.panoptic
            self._counts += panoptic_counts(_array(truth), true_segments, _array(found.segment_map), found.segments, len(self.vocabulary))
            self._images += 1

    def counts(self) -> Tensor:
        """(K, 4) float64 counts summed over ranks, on the CPU. All ranks must call it together."""
        return sum_over_ranks(torch.from_numpy(self._counts.copy())).cpu()

    def compute(self) -> dict:
        """`panoptic_scores` with the number of ``images``."""
        scores = panoptic_scores(self.counts().numpy(), self.vocabulary, self.absent_as_zero)
        return scores | {"images": int(sum_over_ranks(torch.tensor([self._images])))}


def _array(segment_map) -> np.ndarray:
    return segment_map.cpu().numpy() if isinstance(segment_map, Tensor) else np.asarray(segment_map)
