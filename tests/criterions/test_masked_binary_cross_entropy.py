"""The criterion of (photo, class) pairs: sums over samples, whichever batches they come in."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.logging import metrics

from criterions.masked_binary_cross_entropy import MaskedBinaryCrossEntropy
from ofaseg.structures import DenseOutput
from ofaseg.vocabulary import IGNORE_INDEX


def batch(count, seed):
    torch.manual_seed(seed)
    logits, target = torch.randn(count, 2, 4, 5), torch.randint(0, 2, (count, 2, 4, 5), dtype=torch.int8)
    target[:, :, 0] = IGNORE_INDEX
    return logits, target


def criterion(ignored_count=False):
    return MaskedBinaryCrossEntropy(SimpleNamespace(), ignored_count)


def test_sums_of_samples():
    logits, target = batch(3, 0)
    loss, samples, log = criterion()(
        lambda image, class_ids: DenseOutput(logits), {"net_input": {"image": 0, "class_ids": 0}, "target": target}
    )
    each = [F.binary_cross_entropy_with_logits(row[:, 1:], mask[:, 1:].float()) for row, mask in zip(logits, target)]
    torch.testing.assert_close(loss, sum(each))
    assert int(samples) == 3 == log["nsentences"]


def test_a_sample_without_labels_adds_nothing_unless_asked():
    logits, target = batch(3, 1)
    target[1] = IGNORE_INDEX
    loss, samples, _ = criterion().loss(logits, target)
    assert int(samples) == 2
    torch.testing.assert_close(loss, criterion().loss(logits[[0, 2]], target[[0, 2]])[0])
    official, samples, _ = criterion(ignored_count=True).loss(logits, target)
    assert int(samples) == 3
    torch.testing.assert_close(official - loss, F.binary_cross_entropy_with_logits(logits[1], torch.zeros(2, 4, 5)))


def test_metrics_do_not_depend_on_batches():
    logits, target = batch(5, 2)
    target[4] = IGNORE_INDEX
    values = []
    for parts in ([slice(0, 5)], [slice(0, 1), slice(1, 5)], [slice(0, 3), slice(3, 5)]):
        logs = [criterion().loss(logits[part], target[part])[2] for part in parts] + [{"_bad_rows": 2}]
        with metrics.aggregate() as kept:
            MaskedBinaryCrossEntropy.reduce_metrics(logs)
        values.append(kept.get_smoothed_values()["loss"])
    assert values == pytest.approx([values[0]] * 3, abs=2e-4)


def test_weight_of_the_foreground():
    """Part by part: the loss of pixels where the class is counts w times, that of the others once; the mean stays over all pixels."""
    logits, target = batch(3, 3)
    parts = [F.binary_cross_entropy_with_logits(logits, (target == 1).float(), reduction="none") * (target == k) for k in (0, 1)]
    expected = (parts[0] + 6 * parts[1]).sum() / (target[0] != IGNORE_INDEX).sum()
    loss, samples, _ = MaskedBinaryCrossEntropy(SimpleNamespace(), False, foreground_weight=6.0).loss(logits, target)
    torch.testing.assert_close(loss, expected)
    assert int(samples) == 3
    with pytest.raises(ValueError, match="above 0, not 0"):
        MaskedBinaryCrossEntropy(SimpleNamespace(), False, foreground_weight=0.0)
