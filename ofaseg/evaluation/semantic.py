"""Scores of semantic segmentation: one confusion matrix, summed over images and ranks before any division.

The definitions are those of mmsegmentation and of IFSeg (areas of intersection, prediction, label and union over the
labelled pixels of the whole set): a class that neither stands in a label nor is predicted on a labelled pixel has no
IoU and is left out of the mean.
"""

import math
from typing import Optional, Union

import torch
from torch import Tensor

from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary


def bin_counts(prediction: Tensor, label_map: Tensor, num_classes: int) -> Tensor:
    """Counts of (label, prediction) pairs, for sums that stay on the device: never waits for a CUDA device.

    Args:
        prediction: class ids 0..K-1, any shape, any integer type.
        label_map: class ids 0..K-1 or IGNORE_INDEX, same shape.
        num_classes: K.

    Returns:
        (K * K + 2,) int64: bin ``label * K + prediction`` for labelled pixels, then the number of unlabelled pixels,
        then the number of labelled pixels whose label or prediction is no class id (an error for `matrix_from_bins`).
    """
    if prediction.shape != label_map.shape:
        shapes = f"prediction {tuple(prediction.shape)} and label map {tuple(label_map.shape)}"
        raise ValueError(f"{shapes} differ in shape; compare them at the same size")
    prediction, label_map = prediction.reshape(-1).long(), label_map.reshape(-1).long()
    if prediction.device.type == "cpu" and _all_are_classes(prediction, label_map, num_classes):
        counts = torch.bincount(label_map.mul(num_classes).add_(prediction).add_(num_classes), minlength=num_classes * (num_classes + 1))
        return torch.cat([counts[num_classes:], counts[:num_classes].sum()[None], counts.new_zeros(1)])
    ignored, invalid = num_classes * num_classes, num_classes * num_classes + 1
    bad = (label_map < 0) | (label_map >= num_classes) | (prediction < 0) | (prediction >= num_classes)
    bins = torch.where(bad, invalid, label_map * num_classes + prediction)
    bins = torch.where(label_map == IGNORE_INDEX, ignored, bins)
    counts = torch.zeros(invalid + 1, dtype=torch.long, device=bins.device)  # bincount would wait for the largest value
    return counts.scatter_add_(0, bins, torch.ones_like(bins))


def _all_are_classes(prediction: Tensor, label_map: Tensor, num_classes: int) -> bool:
    """Whether predictions are ids 0..K-1 and labels those or IGNORE_INDEX, which is one below them: then one pass counts all pairs.

    It waits for the device.
    """
    if not prediction.numel():
        return False
    (least, most), (least_label, most_label) = prediction.aminmax(), label_map.aminmax()
    return 0 <= int(least) and int(most) < num_classes and IGNORE_INDEX <= int(least_label) and int(most_label) < num_classes


def matrix_from_bins(counts: Tensor, num_classes: int) -> Tensor:
    """The (K, K) confusion matrix [label, prediction] of `bin_counts`.

    Raises:
        ValueError: some pixel had a label or prediction outside 0..K-1.
    """
    invalid = int(counts[-1])
    if invalid:
        raise ValueError(
            f"{invalid} labelled pixels have a label or a prediction outside 0..{num_classes - 1}; "
            "the class vocabulary and the label maps (or the model) do not belong together"
        )
    return counts[:-2].reshape(num_classes, num_classes)


def image_miou(counts: Tensor, num_classes: int) -> Tensor:
    """mIoU 0..1 of one photo from its `bin_counts`, as a scalar on their device; nan when no pixel is labelled.

    The mean is over the classes that the photo's labels or its predictions on labelled pixels hold. It ranks photos; the
    mIoU of a set is not the mean of these.
    """
    matrix = counts[: num_classes * num_classes].reshape(num_classes, num_classes).to(torch.float32)
    intersect = matrix.diagonal()
    return (intersect / (matrix.sum(0) + matrix.sum(1) - intersect)).nanmean()


def confusion_matrix(prediction: Tensor, label_map: Tensor, num_classes: int) -> Tensor:
    """Pixels per (label, prediction); unlabelled pixels (IGNORE_INDEX) are left out.

    For label maps at hand; evaluation sums `bin_counts` over batches and processes instead, which never waits for the device.

    Args:
        prediction: class ids 0..K-1, any shape.
        label_map: class ids 0..K-1 or IGNORE_INDEX, same shape.
        num_classes: K.

    Returns:
        (K, K) int64 on the same device, rows are labels, columns predictions.

    Raises:
        ValueError: different shapes, or ids outside 0..K-1.
    """
    return matrix_from_bins(bin_counts(prediction, label_map, num_classes), num_classes)


def semantic_scores(matrix: Tensor, vocabulary: Union[ClassVocabulary, int, None] = None) -> dict:
    """Scores of a confusion matrix, all in 0..1 (nan where undefined).

    Args:
        matrix: (K, K) pixels, rows are labels, columns predictions; or (K, K + 1), whose last column counts pixels with a prediction
            that is no class: missed by the label's class, claimed by none.
        vocabulary: its names label the per-class rows; its base/novel and thing/stuff marks add the grouped means.

    Returns:
        dict with mIoU, mAcc, aAcc, fwIoU; ``IoU_per_class`` and ``acc_per_class`` (lists of K), ``class_names``,
        ``label_share_per_class`` (share of the labelled pixels), ``pixels``, ``classes_scored``; with novel classes
        base_mIoU, novel_mIoU, harmonic_mIoU; with thing marks thing_mIoU, stuff_mIoU.
    """
    names = list(vocabulary.names) if isinstance(vocabulary, ClassVocabulary) else [str(k) for k in range(len(matrix))]
    if tuple(matrix.shape) not in ((len(names), len(names)), (len(names), len(names) + 1)):
        raise ValueError(f"a confusion matrix of shape {tuple(matrix.shape)} does not fit {len(names)} class names")
    matrix = matrix.detach().to("cpu", torch.float64)
    intersect, label, predicted = matrix.diagonal(), matrix.sum(1), matrix[:, : len(names)].sum(0)
    total = float(label.sum())
    iou = intersect / (label + predicted - intersect)  # 0 / 0 = nan: the class is absent
    accuracy = intersect / label
    share = label / total if total else torch.full_like(label, math.nan)
    scores = {
        "mIoU": nanmean(iou),
        "mAcc": nanmean(accuracy),
        "aAcc": float(intersect.sum()) / total if total else math.nan,
        "fwIoU": float((share * iou.nan_to_num(0.0)).sum()) if total else math.nan,
        "IoU_per_class": iou.tolist(),
        "acc_per_class": accuracy.tolist(),
        "label_share_per_class": share.tolist(),
        "class_names": names,
        "classes_scored": int((~iou.isnan()).sum()),
        "pixels": int(total),
    }
    return scores | _grouped(iou, vocabulary) if isinstance(vocabulary, ClassVocabulary) else scores


def _grouped(iou: Tensor, vocabulary: ClassVocabulary) -> dict:
    """Means over base and novel classes with their harmonic mean, and over things and stuff, where marked."""
    scores = {}
    if any(vocabulary.novel):
        novel = torch.tensor(vocabulary.novel, dtype=torch.bool)
        base_mean, novel_mean = nanmean(iou[~novel]), nanmean(iou[novel])
        scores |= {"base_mIoU": base_mean, "novel_mIoU": novel_mean, "harmonic_mIoU": harmonic_mean(base_mean, novel_mean)}
    if any(vocabulary.thing) and not all(vocabulary.thing):
        thing = torch.tensor(vocabulary.thing, dtype=torch.bool)
        scores |= {"thing_mIoU": nanmean(iou[thing]), "stuff_mIoU": nanmean(iou[~thing])}
    return scores


def nanmean(values: Tensor) -> float:
    """Mean of the values that are not nan; nan when there is none."""
    return float(values.nanmean()) if values.numel() else math.nan


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), 0 when both are 0, nan when either is nan."""
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


def best_constant_prediction(matrix: Tensor, vocabulary: Optional[ClassVocabulary] = None) -> dict:
    """Scores of painting every pixel with the one class that gives the highest mIoU: the floor any model must pass.

    Only the label totals of the (K, K) `matrix` count. Returns `semantic_scores` of that constant, with the class id
    as ``constant_class`` (None when no pixel is labelled) and its name as ``constant_name``.
    """
    label = matrix.detach().cpu().sum(1)
    constant = int(label.argmax())  # mIoU of a constant = its pixel share / classes present: the commonest class wins
    constant_matrix = torch.zeros_like(matrix, device="cpu")
    constant_matrix[:, constant] = label
    scores = semantic_scores(constant_matrix, vocabulary)
    labelled = bool(label.sum() > 0)
    return scores | {
        "constant_class": constant if labelled else None,
        "constant_name": scores["class_names"][constant] if labelled else None,
    }
