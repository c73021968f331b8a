"""Scores of few-shot and zero-shot segmentation: mIoU over the novel classes of a fold, and FB-IoU.

Every tested pair of a photo and a class is a binary segmentation. Pixels are counted for background (j = 0) and foreground (j = 1) under
the pair's class c, summed over all pairs, and divided once:

    IoU_c = inter[1, c] / union[1, c]       mIoU = mean over classes       FB-IoU = mean over j of sum_c inter[j, c] / sum_c union[j, c]

Two protocols differ in what they leave out (`PROTOCOLS`):

- fusioner: pairs without a pixel of the class do not count; classes without any pixel, in labels or predictions, are no part of the means;
- hsnet (also LSeg's): every pair counts; all classes of the fold are part of the mean, one that was never tested has IoU 0.

The counts are whole numbers, so sums over batches and ranks are exact in any order (float32 sums, as in the published code, stop
being exact at 2**24 pixels).
"""

import math
from typing import Optional, Sequence, Union

import torch
from torch import Tensor

from ofaseg.evaluation.evaluator import Evaluator, sum_over_ranks
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

PROTOCOLS = ("fusioner", "hsnet")
NUM_COUNTS = 6
_INTER, _UNION, _PAIRS, _EMPTY = slice(0, 2), slice(2, 4), 4, 5


def pair_counts(prediction: Tensor, target: Tensor, class_ids: Tensor, num_classes: int, protocol: str = "fusioner") -> Tensor:
    """Counts of a batch of pairs, for sums that stay on the device: never waits for a CUDA device.

    Args:
        prediction: (B, K, H, W) bool or 0/1, whether a pixel is of the class.
        target: (B, K, H, W) integers: 1 of the class, 0 not, `IGNORE_INDEX` without a label: such pixels do not count.
        class_ids: (B, K) class of each pair.
        num_classes: C, the number of classes of the vocabulary.
        protocol: one of `PROTOCOLS`.

    Returns:
        (6, C) int64: pixels of intersection in background and foreground, pixels of union in both, pairs that count, and pairs that
        hold no pixel of their class.

    Raises:
        ValueError: shapes that do not fit, or an unknown protocol.
    """
    _check_protocol(protocol)
    if prediction.shape != target.shape or target.shape[:2] != class_ids.shape:
        shapes = f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)} and class ids {tuple(class_ids.shape)}"
        raise ValueError(f"{shapes} do not fit; compare them at one size, (B, K, H, W) and (B, K)")
    labelled, truth = target != IGNORE_INDEX, target == 1
    predicted = prediction.bool() & labelled
    pixels, true, positive, both = (mask.sum((2, 3)) for mask in (labelled, truth, predicted, truth & predicted))
    union = true + positive - both
    counts = torch.stack([pixels - union, both, pixels - both, union, torch.ones_like(both)])  # neither means background in both
    empty = true == 0
    if protocol == "fusioner":
        counts = counts * ~empty
    counts = torch.cat([counts, empty[None].long()]).reshape(NUM_COUNTS, -1)
    zero = torch.zeros(NUM_COUNTS, num_classes, dtype=torch.long, device=counts.device)
    return zero.index_add_(1, class_ids.reshape(-1).to(counts.device), counts)


def classes_with_pairs(counts: Tensor) -> set[int]:
    """Ids of the classes that summed `pair_counts`, (6, C), have pairs of, with or without a pixel of the class."""
    return set((counts[_PAIRS] + counts[_EMPTY]).nonzero().flatten().tolist())


def few_shot_scores(
    counts: Tensor, classes: Sequence[int], protocol: str = "fusioner", vocabulary: Optional[ClassVocabulary] = None
) -> dict:
    """Scores 0..1 of summed `pair_counts`.

    Args:
        counts: (6, C).
        classes: class ids of the fold that is tested (its novel classes), in the order of the table.
        vocabulary: its names label the table.

    Returns:
        dict with mIoU, FB_IoU (nan where nothing was tested), fg_IoU, bg_IoU; lists over `classes`: class_names, IoU_per_class,
        pairs_per_class; pairs and empty_pairs; classes_scored.

    Raises:
        ValueError: an unknown protocol.
    """
    _check_protocol(protocol)
    counts = counts.detach().cpu()[:, list(classes)]
    inter, union = counts[_INTER].double(), counts[_UNION].double()
    scored = union[1] > 0 if protocol == "fusioner" else torch.ones(len(classes), dtype=torch.bool)
    iou = inter[1] / union[1].clamp(min=1)
    sides = inter[:, scored].sum(1) / union[:, scored].sum(1)
    names = [vocabulary.names[k] if vocabulary else str(k) for k in classes]
    tested = bool(counts[_PAIRS].sum())
    return {
        "mIoU": float(iou[scored].mean()) if tested else math.nan,
        "FB_IoU": float(sides.mean()) if tested else math.nan,
        "bg_IoU": float(sides[0]),
        "fg_IoU": float(sides[1]),
        "class_names": names,
        "IoU_per_class": [float(value) if used else math.nan for value, used in zip(iou, scored)],
        "pairs_per_class": counts[_PAIRS].tolist(),
        "pairs": int(counts[_PAIRS].sum()),
        "empty_pairs": int(counts[_EMPTY].sum()),
        "classes_scored": int(scored.sum()),
        "protocol": protocol,
    }


def mean_over_folds(folds: Sequence[dict]) -> dict:
    """The plain mean of mIoU and FB-IoU of the folds, as papers give it, with the classes of all folds in one table.

    Args:
        folds: `few_shot_scores` of each fold, which hold out different classes.

    Raises:
        ValueError: no fold, folds of different protocols, or a class in two of them.
    """
    names = [name for fold in folds for name in fold["class_names"]]
    protocols = sorted({fold["protocol"] for fold in folds})
    if len(protocols) != 1:
        raise ValueError(f"{len(folds)} folds of the protocols {protocols}; a mean takes one fold or more, all of one protocol")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"class {twice!r} is held out in two of the {len(folds)} folds; give each fold once")
    merged = {key: sum(fold[key] for fold in folds) / len(folds) for key in ("mIoU", "FB_IoU", "bg_IoU", "fg_IoU")}
    merged |= {key: sum(fold[key] for fold in folds) for key in ("pairs", "empty_pairs", "classes_scored")}
    merged |= {key: [value for fold in folds for value in fold[key]] for key in ("class_names", "IoU_per_class", "pairs_per_class")}
    merged |= {f"{key}_per_fold": [fold[key] for fold in folds] for key in ("mIoU", "FB_IoU")}
    return merged | {"protocol": protocols[0]}


class FewShotEvaluator(Evaluator):
    """mIoU and FB-IoU over batches of `ofaseg.data.pair_view_dataset`.

    Args:
        vocabulary: the classes.
        classes: class ids of the fold that is tested.
        protocol: one of `PROTOCOLS`.
    """

    def __init__(self, vocabulary: ClassVocabulary, classes: Sequence[int], protocol: str = "fusioner"):
        _check_protocol(protocol)
        self.vocabulary, self.classes, self.protocol = vocabulary, tuple(classes), protocol
        self.reset()

    def reset(self) -> None:
        self._counts: Optional[Tensor] = None

    def update(self, outputs: Union[Tensor, list[Tensor]], batch: dict) -> None:
        """Adds the masks of one batch.

        Args:
            outputs: (B, K, h, w) bool or 0/1 at the size of `batch["target"]`, which is compared with; or a list of B masks (K, H_i, W_i)
                at the photos' own sizes, compared with `batch["native_targets"]`.
        """
        class_ids = batch["net_input"]["class_ids"]
        if isinstance(outputs, Tensor):
            pairs = [(outputs, batch["target"], class_ids)]
        else:
            pairs = zip([mask[None] for mask in outputs], [mask[None] for mask in batch["native_targets"]], class_ids.split(1))
        for prediction, target, ids in pairs:
            target, ids = (tensor.to(prediction.device, non_blocking=True) for tensor in (target, ids))
            counts = pair_counts(prediction, target, ids, len(self.vocabulary), self.protocol)
            self._counts = counts if self._counts is None else self._counts + counts

    def counts(self) -> Tensor:
        """(6, C) `pair_counts` summed over ranks, on the CPU. All ranks must call it together."""
        counts = self._counts
        if counts is None:
            counts = torch.zeros(NUM_COUNTS, len(self.vocabulary), dtype=torch.long)
        return sum_over_ranks(counts).cpu()

    def compute(self) -> dict:
        """`few_shot_scores`."""
        return few_shot_scores(self.counts(), self.classes, self.protocol, self.vocabulary)


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
