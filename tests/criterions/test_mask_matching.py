"""The criterion of mask proposals: photos as sample size, means over all processes' masks, what is logged, gradients everywhere."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics

from criterions import mask_matching
from criterions.mask_matching import PARTS, MaskMatching
from ofaseg.mask_losses import MASK2FORMER_LOSSES, mask_set_losses, supervised_layers
from ofaseg.mask_matching import MASK2FORMER_COSTS, match_masks
from ofaseg.structures import MaskOutput, MaskTargets


def output_of(photos=3, layers=4, seed=0):
    """Predictions of 6 queries and 3 classes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    return MaskOutput(
        tuple(draw(photos, 6, 4) for _ in range(layers)), tuple(draw(photos, 6, 5) for _ in range(layers)), draw(photos, 5, 4, 6)
    )


def targets_of(counts=(2, 0, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    masks = torch.rand(total, 16, 24, generator=generator) > 0.5
    return MaskTargets(masks, torch.randint(0, 3, (total,), generator=generator), counts)


def one_photo(output, targets, b):
    rows = slice(targets.starts[b], targets.starts[b] + targets.counts[b])
    parts = [tuple(layer[b : b + 1] for layer in layers) for layers in output[:2]]
    return MaskOutput(*parts, output.mask_features[b : b + 1]), MaskTargets(
        targets.masks[rows], targets.classes[rows], (targets.counts[b],)
    )


def criterion(**options):
    return MaskMatching(SimpleNamespace(), **options)


def reduced(logs):
    with metrics.aggregate() as kept:
        MaskMatching.reduce_metrics(logs)
    return kept.get_smoothed_values()


def test_loss_and_log():
    """The weighted losses of all supervised predictions, times photos; parts add up to the whole."""
    output, targets = output_of(), targets_of()
    layers = supervised_layers(4)
    losses = mask_set_losses(output, targets, match_masks(output, targets, layers=list(layers)), torch.tensor(5.0), layers=layers)
    loss, photos, log = criterion().loss(output, targets)
    torch.testing.assert_close(loss, 3 * sum(losses.values()))
    assert photos == 3 == log["nsentences"] and not log["loss"].requires_grad
    scores = reduced([log])
    assert scores["loss"] == pytest.approx(float(sum(losses.values()).detach()), abs=1e-3)
    assert [scores[name] for name in PARTS[:3]] == pytest.approx([float(losses[name].detach()) for name in PARTS[:3]], abs=1e-3)
    assert sum(scores[name] for name in PARTS) == pytest.approx(scores["loss"], abs=1e-3)
    more = criterion(all_auxiliary=True).loss(output, targets)[2]
    assert more["loss_auxiliary"] > log["loss_auxiliary"] and torch.equal(more["loss_ce"], log["loss_ce"])


def test_options_are_those_of_losses_and_assignment():
    ours = criterion(class_weight=2.0, mask_weight=5.0, mask_points=12544)
    assert ours.losses == MASK2FORMER_LOSSES and ours.costs == MASK2FORMER_COSTS
    assert criterion(no_object=0.3).losses.no_object == 0.3


def test_forward_hands_the_model_its_inputs():
    output, targets, seen = output_of(), targets_of(), {}
    sample = {"net_input": {"image": 1, "task": "panoptic"}, "masks": targets, "counted": True}
    loss, photos, _ = criterion()(lambda **inputs: seen.update(inputs) or output, sample)
    assert seen == sample["net_input"] and photos == 3
    torch.testing.assert_close(loss, criterion().loss(output, targets)[0])


def test_mask_losses_are_means_over_the_masks_of_all_processes(monkeypatch):
    """Photos on one process or spread over two, 1 and 2: the same gradient of the masks."""
    output, targets = output_of(), targets_of()
    whole, photos, _ = criterion(class_weight=0.0).loss(output, targets)
    (expected,) = torch.autograd.grad(whole / photos, output.mask_features)
    monkeypatch.setattr(mask_matching, "summed", lambda sums: torch.tensor([5.0, 3.0]))
    output = output_of()
    ranks = [one_photo(output, targets, 0), rest(output, targets)]
    # the assignment reads class scores too, so that they are given their weight there
    total = sum(
        criterion(class_weight=0.0)(lambda own=own: own, {"net_input": {}, "masks": masks, "counted": True})[0] for own, masks in ranks
    )
    (found,) = torch.autograd.grad(total / 3, output.mask_features)
    torch.testing.assert_close(found, expected)


def rest(output, targets):
    start = targets.starts[1]
    parts = [tuple(layer[1:] for layer in layers) for layers in output[:2]]
    return MaskOutput(*parts, output.mask_features[1:]), MaskTargets(targets.masks[start:], targets.classes[start:], targets.counts[1:])


def test_a_repeated_batch_does_not_count(monkeypatch):
    counted = []
    monkeypatch.setattr(mask_matching, "summed", lambda sums: counted.append(sums.tolist()) or torch.tensor([5.0, 3.0]))
    for flag in (True, False):
        criterion()(lambda: output_of(), {"net_input": {}, "masks": targets_of(), "counted": flag})
    assert counted == [[5.0, 3.0], [0.0, 0.0]]


def test_without_any_mask_every_input_has_a_gradient():
    output = output_of()
    loss, photos, log = criterion().loss(output, targets_of((0, 0, 0)))
    loss.backward()
    assert photos == 3 and loss > 0 and not log["loss_mask"].any()
    assert output.mask_features.grad is not None and output.mask_embeddings[-1].grad is not None
    assert output.class_logits[-1].grad.any()


def test_metrics_weigh_by_photos():
    logs = [criterion().loss(output_of(n, seed=n), targets_of((2,) * n, seed=n))[2] for n in (1, 3)]
    total = sum(float(log["loss"]) for log in logs)
    assert reduced([*logs, {"_bad_rows": 1}])["loss"] == pytest.approx(total / 4, abs=1e-3)
    assert reduced([{"_bad_rows": 1}]) == {}
