"""The linear classifier on stored features: rates, standardising, learning, accuracies."""

import math

import pytest
import torch

from ofaseg.evaluation.linear_probe import accuracies, cosine_rate, standardise, train_classifier
from ofaseg.optim.lars import LARS


def test_rates_rise_for_a_ninth_and_fall_to_nought():
    rates = [cosine_rate(step, 90, 6.4) for step in range(90)]
    assert rates[0] == 0 and rates[5] == pytest.approx(3.2) and rates[10] == 6.4 == max(rates)
    assert rates[50] == pytest.approx(3.2) and 0 < rates[89] < 0.01
    assert cosine_rate(0, 1, 6.4) == 6.4


def test_standardising_is_that_of_the_training_set():
    train, other = torch.randn(50, 3) * torch.tensor([2.0, 0.0, 5.0]) + 7, torch.randn(9, 3)
    done, done_other = standardise(train, other)
    torch.testing.assert_close(done[:, [0, 2]].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(done[:, [0, 2]].std(0, correction=0), torch.ones(2))
    assert (done[:, 1] == 0).all() and (done_other[:, 1] == 0).all()
    mean, deviation = train[:, 0].mean(), train[:, 0].std(correction=0)
    torch.testing.assert_close(done_other[:, 0], (other[:, 0] - mean) / deviation)


@pytest.mark.parametrize("rule, lr", [(lambda p: LARS(p, 6.4), 6.4), (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 0.1)])
def test_blobs_are_told_apart(rule, lr):
    centres = torch.randn(8, 16) * 2
    labels = torch.arange(400) % 8
    features = centres[labels] + torch.randn(400, 16) * 0.5
    losses = []
    layer = train_classifier(features, labels, 8, rule, lr, 15, 40, on_epoch=lambda epoch, loss: losses.append(loss))
    assert len(losses) == 15 and losses[-1] < 0.2 * losses[0]
    assert accuracies(layer, features, labels)["top1"] > 0.98
    again = train_classifier(features, labels, 8, rule, lr, 15, 40)
    assert torch.equal(layer.weight, again.weight)


def test_accuracies_by_hand():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    found = accuracies(torch.nn.Identity(), logits, torch.tensor([0, 0, 1, 4]))
    assert found == {"top1": 0.25, "top5": 0.75}
    assert math.isclose(accuracies(torch.nn.Identity(), logits[:, :2], torch.tensor([1, 1, 1, 1]))["top5"], 1.0)
