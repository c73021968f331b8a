"""The criterion of pairs: sums, metrics, and which pairs it compares with."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.logging import metrics

from criterions.image_text_contrastive import ImageTextContrastive
from ofaseg import distributed
from ofaseg.losses import contrastive_loss
from ofaseg.structures import ImageTextOutput


def make_output(rows=6, temperature=0.1):
    image, text = (F.normalize(torch.randn(rows, 8), dim=1) for _ in range(2))
    return ImageTextOutput(image, text, torch.tensor(temperature))


def criterion(**options):
    return ImageTextContrastive(SimpleNamespace(), **({"label_smoothing": 0.0, "local_negatives": False} | options))


def test_sums_and_sample_size():
    output = make_output()
    loss, size, log = criterion(label_smoothing=0.1)(lambda image: output, {"net_input": {"image": None}})
    expected, hits = contrastive_loss(*output[:2], *output[:2], output.temperature, 0, 0.1)
    assert torch.equal(loss, expected) and size == log["sample_size"] == log["nsentences"] == 6
    assert log["_hits"].tolist() == hits.tolist()


def test_metrics_are_means_over_pairs_of_all_batches():
    outputs = [make_output(6, 0.1), make_output(2, 0.3)]
    logs = [criterion().loss(output)[2] for output in outputs]
    logs.append({"_bad_rows": 1})  # of a batch without any row
    with metrics.aggregate() as kept:
        ImageTextContrastive.reduce_metrics(logs)
    values = kept.get_smoothed_values()
    losses, hits = zip(*(contrastive_loss(*output[:2], *output[:2], output.temperature) for output in outputs))
    assert values["loss"] == pytest.approx(float(sum(losses)) / 8, abs=1e-4)
    assert values["acc_image_to_text"] == pytest.approx(float(hits[0][0] + hits[1][0]) / 8, abs=1e-4)
    assert values["acc_text_to_image"] == pytest.approx(float(hits[0][1] + hits[1][1]) / 8, abs=1e-4)
    assert values["temperature"] == pytest.approx((6 * 0.1 + 2 * 0.3) / 8, abs=1e-4)


def test_a_process_compares_with_all_pairs_in_training_only(monkeypatch):
    """As the second of two processes, whose rows come behind those of the first."""
    output, others = make_output(4), make_output(4)
    of = {id(output.image_embedding): others.image_embedding, id(output.text_embedding): others.text_embedding}
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather_rows", lambda rows: torch.cat([of[id(rows)], rows]))
    everything = (torch.cat([others.image_embedding, output.image_embedding]), torch.cat([others.text_embedding, output.text_embedding]))
    expected = contrastive_loss(*output[:2], *everything, output.temperature, 4)[0]
    alone = contrastive_loss(*output[:2], *output[:2], output.temperature)[0]
    assert torch.equal(criterion().loss(output)[0], expected) and float(expected) > float(alone)
    assert torch.equal(criterion(local_negatives=True).loss(output)[0], alone)
    assert torch.equal(criterion().eval().loss(output)[0], alone)
