"""The criterion of regions: sums over regions, whichever batches they come in."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.logging import metrics

from criterions.region_cross_entropy import RegionCrossEntropy


def batch(count):
    torch.manual_seed(count)
    return torch.randn(count, 4), torch.arange(count) % 4


def test_sums_of_regions():
    logits, target = batch(6)
    sample = {"net_input": {"image": 0}, "target": target}
    loss, regions, log = RegionCrossEntropy(SimpleNamespace())(lambda image: logits.bfloat16(), sample)
    assert regions == log["sample_size"] == 6 and loss.dtype == torch.float32
    torch.testing.assert_close(loss, 6 * F.cross_entropy(logits.bfloat16().float(), target))


def test_metrics_do_not_depend_on_batches():
    logits, target = batch(7)
    criterion, values = RegionCrossEntropy(SimpleNamespace()), []
    for parts in ([slice(0, 7)], [slice(0, 2), slice(2, 7)]):
        logs = [criterion.loss(logits[part], target[part])[2] for part in parts] + [{"_bad_rows": 2}]
        with metrics.aggregate() as kept:
            RegionCrossEntropy.reduce_metrics(logs)
        values.append(kept.get_smoothed_values()["loss"])
    assert values == pytest.approx([float(F.cross_entropy(logits, target))] * 2, abs=2e-4)
