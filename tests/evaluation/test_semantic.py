"""Confusion matrix and scores against a naive loop, hand-made cases and mmsegmentation's IoUMetric."""

import math

import numpy as np
import pytest
import torch

from ofaseg.evaluation.semantic import best_constant_prediction, bin_counts, confusion_matrix, harmonic_mean, semantic_scores
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary


def random_maps(num_classes=5, shape=(3, 17, 23), seed=0, ignored=0.2):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, shape)
    prediction = np.where(rng.random(shape) < 0.5, label, rng.integers(0, num_classes, shape))
    label = np.where(rng.random(shape) < ignored, IGNORE_INDEX, label)
    return torch.from_numpy(prediction), torch.from_numpy(label)


def naive_scores(prediction, label, num_classes):
    iou, accuracy = [], []
    pairs = [(p, t) for p, t in zip(prediction.flatten().tolist(), label.flatten().tolist()) if t != IGNORE_INDEX]
    for k in range(num_classes):
        both = sum(p == k and t == k for p, t in pairs)
        either = sum(p == k or t == k for p, t in pairs)
        labelled = sum(t == k for _, t in pairs)
        iou.append(both / either if either else math.nan)
        accuracy.append(both / labelled if labelled else math.nan)
    return iou, accuracy, sum(p == t for p, t in pairs) / len(pairs)


def test_matrix_and_scores_equal_a_naive_loop():
    prediction, label = random_maps()
    label[label == 3] = 1  # class 3: predicted but never labelled
    prediction[prediction == 4], label[label == 4] = 0, 0  # class 4: absent from both
    matrix = confusion_matrix(prediction, label, 5)
    iou, accuracy, overall = naive_scores(prediction, label, 5)
    scores = semantic_scores(matrix)
    np.testing.assert_allclose(scores["IoU_per_class"], iou)
    np.testing.assert_allclose(scores["acc_per_class"], accuracy)
    assert scores["mIoU"] == pytest.approx(np.nanmean(iou)) and scores["mAcc"] == pytest.approx(np.nanmean(accuracy))
    assert scores["aAcc"] == pytest.approx(overall)
    assert scores["classes_scored"] == 4 and math.isnan(scores["IoU_per_class"][4]) and scores["IoU_per_class"][3] == 0


@pytest.mark.parametrize("num_classes", [2, 21])
def test_scores_equal_mmsegmentation(num_classes):
    from ofaseg.utils.mm import require_mmseg

    try:
        require_mmseg()
    except ImportError:
        pytest.skip("mmsegmentation is not installed")
    from mmseg.evaluation import IoUMetric

    prediction, label = random_maps(num_classes, seed=3)
    metric = IoUMetric(iou_metrics=["mIoU"], ignore_index=255)
    metric.dataset_meta = {"classes": [str(k) for k in range(num_classes)]}
    for p, t in zip(prediction, label):
        stored = torch.where(t == IGNORE_INDEX, 255, t)
        metric.process({}, [{"pred_sem_seg": {"data": p[None]}, "gt_sem_seg": {"data": stored[None]}}])
    theirs = metric.compute_metrics(metric.results)
    ours = semantic_scores(confusion_matrix(prediction, label, num_classes))
    for key in ("mIoU", "mAcc", "aAcc"):
        assert 100 * ours[key] == pytest.approx(float(theirs[key]), abs=0.006), key  # theirs is rounded to two decimals


def test_sum_of_matrices_is_the_matrix_of_the_whole_set():
    prediction, label = random_maps()
    parts = sum(confusion_matrix(p, t, 5) for p, t in zip(prediction, label))
    assert torch.equal(parts, confusion_matrix(prediction, label, 5))


def test_ignored_pixels_do_not_count():
    prediction, label = torch.tensor([[0, 1, 1]]), torch.tensor([[0, IGNORE_INDEX, 1]])
    assert confusion_matrix(prediction, label, 2).tolist() == [[1, 0], [0, 1]]
    nothing = semantic_scores(confusion_matrix(prediction, torch.full_like(label, IGNORE_INDEX), 2))
    assert math.isnan(nothing["mIoU"]) and math.isnan(nothing["aAcc"]) and nothing["pixels"] == 0


def test_perfect_prediction_and_shuffled_labels():
    _, label = random_maps(ignored=0)
    assert semantic_scores(confusion_matrix(label, label, 5))["mIoU"] == 1.0
    shuffled = torch.tensor([1, 2, 3, 4, 0])[label]
    scores = semantic_scores(confusion_matrix(shuffled, label, 5))
    assert scores["mIoU"] == 0 and scores["aAcc"] == 0


def test_rows_are_labels_and_columns_predictions():
    matrix = confusion_matrix(torch.tensor([1, 1, 2]), torch.tensor([0, 0, 2]), 3)
    assert matrix[0, 1] == 2 and matrix[1, 0] == 0 and matrix.dtype == torch.int64


def test_one_wrong_pixel_changes_no_other_count():
    prediction, label = random_maps()
    counts = bin_counts(prediction, label, 5)
    assert counts.sum() == label.numel() and counts[-2] == (label == IGNORE_INDEX).sum() > 0 and counts[-1] == 0
    longer = [torch.cat([part.flatten(), torch.tensor([value])]) for part, value in ((prediction, 2), (label, 77))]
    wrong = bin_counts(*longer, 5)  # counted the slow way
    assert torch.equal(wrong[:-1], counts[:-1]) and wrong[-1] == 1
    assert bin_counts(prediction[:0], label[:0], 5).tolist() == [0] * 27


@pytest.mark.parametrize("prediction, label", [(5, 0), (0, 5), (-1, 0), (0, -2), (0, 255)])
def test_ids_outside_the_vocabulary_are_an_error(prediction, label):
    with pytest.raises(ValueError, match=r"outside 0\.\.4"):
        confusion_matrix(torch.tensor([prediction]), torch.tensor([label]), 5)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(2, 3), torch.zeros(3, 2), 2)


def test_frequency_weighted_iou_by_hand():
    matrix = torch.tensor([[6, 2], [0, 2]])
    scores = semantic_scores(matrix)
    assert scores["fwIoU"] == pytest.approx(0.8 * 6 / 8 + 0.2 * 2 / 4)


def test_base_novel_and_thing_means():
    vocabulary = ClassVocabulary(names=("a", "b", "c"), novel=(False, True, False), thing=(True, False, False))
    matrix = torch.tensor([[1, 1, 0], [0, 2, 0], [0, 0, 4]])
    scores = semantic_scores(matrix, vocabulary)
    base, novel = (0.5 + 1.0) / 2, 2 / 3
    assert scores["base_mIoU"] == pytest.approx(base) and scores["novel_mIoU"] == pytest.approx(novel)
    assert scores["harmonic_mIoU"] == pytest.approx(2 * base * novel / (base + novel))
    assert scores["thing_mIoU"] == 0.5 and scores["stuff_mIoU"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["class_names"] == ["a", "b", "c"]
    assert "base_mIoU" not in semantic_scores(matrix, ClassVocabulary(names=("a", "b", "c")))
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_vocabulary_of_another_size_is_an_error():
    with pytest.raises(ValueError, match="does not fit 2 class names"):
        semantic_scores(torch.zeros(3, 3), ClassVocabulary(names=("a", "b")))


def test_best_constant_prediction_beats_every_other_constant():
    _, label = random_maps(ignored=0.1, seed=5)
    label[label == 4] = 2
    matrix = confusion_matrix(torch.zeros_like(label), label, 5)
    best = best_constant_prediction(matrix, ClassVocabulary(names=tuple("abcde")))
    each = [semantic_scores(confusion_matrix(torch.full_like(label, k), label, 5))["mIoU"] for k in range(4)]
    assert best["mIoU"] == pytest.approx(max(each)) and best["constant_class"] == int(np.argmax(each)) == 2
    assert best["constant_name"] == "c"
    assert best_constant_prediction(torch.zeros(5, 5, dtype=torch.long))["constant_class"] is None
