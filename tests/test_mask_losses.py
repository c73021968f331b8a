"""Mask losses against their definition on upsampled logits, by autograd; at points; of batches without masks."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg import mask_losses
from ofaseg.mask_losses import MASK2FORMER_LOSSES, MaskLosses, full_losses, mask_set_losses, point_losses, supervised_layers
from ofaseg.mask_matching import MatchCosts, match_masks
from tests.mask_batches import CLASSES, FULL, LAYERS, QUERIES, SIZE, make_output, make_targets


def focal_and_dice(logits, masks, alpha=0.25):
    """From the definitions, in the order of the published code."""
    wide = F.interpolate(logits[:, None], FULL, mode="bilinear", align_corners=False)[:, 0].flatten(1)
    truth = masks.flatten(1).to(wide)
    probs = wide.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(wide, truth, reduction="none")
    right = probs * truth + (1 - probs) * (1 - truth)
    focal = ((alpha * truth + (1 - alpha) * (1 - truth)) * entropy * (1 - right) ** 2).mean(1)
    return focal, 1 - (2 * (probs * truth).sum(1) + 1) / (probs.sum(1) + truth.sum(1) + 1)


@pytest.mark.parametrize("chunk", [1, 3 * 20 * 28, 2**20])
def test_full_losses_and_their_gradient(monkeypatch, chunk):
    monkeypatch.setitem(mask_losses.CHUNK_ELEMENTS, "cpu", chunk)
    targets, index = make_targets().masks, torch.tensor([3, 3, 0, 9, 1])
    logits = (4 * torch.randn(5, *SIZE)).requires_grad_()
    ours, expected = full_losses(logits, targets, index), focal_and_dice(logits, targets[index])
    for one, other in zip(ours, expected):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    upstream = [torch.randn(5), torch.randn(5)]
    ours, expected = torch.autograd.grad(ours, logits, upstream)[0], torch.autograd.grad(expected, logits, upstream)[0]
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def test_large_logits_stay_numbers():
    logits = torch.tensor([-300.0, 300.0])[:, None, None].expand(2, *SIZE).clone().requires_grad_()
    focal, dice = full_losses(logits, make_targets().masks, torch.tensor([0, 1]))
    (focal.sum() + dice.sum()).backward()
    assert focal.isfinite().all() and logits.grad.isfinite().all()
    torch.testing.assert_close(focal, focal_and_dice(logits, make_targets().masks[:2])[0])


# ---- all together ----


def written_out(output, targets, matches, num_masks, layers, options):
    """One layer and photo after the other."""
    losses = {}
    for row, (layer, suffix) in enumerate(layers.items()):
        classes = torch.full((3, QUERIES), CLASSES)
        focal, dice = 0.0, 0.0
        for photo, (match, start) in enumerate(zip(matches, targets.starts)):
            for q, t in zip(match.queries[row].tolist(), match.targets[row].tolist()):
                classes[photo, q] = targets.classes[start + t]
                one = focal_and_dice(output.layer_mask_logits(layer)[photo, q][None], targets.masks[start + t][None])
                focal, dice = focal + one[0][0], dice + one[1][0]
        weight = torch.tensor([1.0] * CLASSES + [options.no_object])
        losses[f"loss_ce{suffix}"] = options.class_weight * F.cross_entropy(output.class_logits[layer].transpose(1, 2), classes, weight)
        losses[f"loss_mask{suffix}"] = options.mask_weight * focal / num_masks
        losses[f"loss_dice{suffix}"] = options.dice_weight * dice / num_masks
    return losses


def test_all_losses():
    output, targets, options = make_output(grad=True), make_targets((2, 0, 8)), MaskLosses(2.0, 20.0, 5.0, 0.3)
    layers = supervised_layers(LAYERS)
    matches = match_masks(output, targets, layers=list(layers))
    ours = mask_set_losses(output, targets, matches, torch.tensor(7.5), options)
    expected = written_out(output, targets, matches, 7.5, layers, options)
    assert list(ours) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, msg=name)
    used = [output.class_logits[layer] for layer in layers] + [output.mask_embeddings[layer] for layer in layers] + [output.mask_features]
    pairs = zip(torch.autograd.grad(sum(ours.values()), used), torch.autograd.grad(sum(expected.values()), used))
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_supervised_layers():
    assert list(supervised_layers(11).items()) == [(10, ""), *((i, f"_{i}") for i in range(9))]  # published: nothing for layer 9
    assert list(supervised_layers(3, all_auxiliary=True).items()) == [(2, ""), (0, "_0"), (1, "_1")]
    assert supervised_layers(1) == {0: ""}


def test_a_batch_without_masks():
    output, targets = make_output(grad=True), make_targets((0, 0, 0))._replace(classes=torch.zeros(0, dtype=torch.long))
    losses = mask_set_losses(output, targets, match_masks(output, targets, layers=list(supervised_layers(LAYERS))), torch.tensor(0.0))
    assert all(value == 0 for name, value in losses.items() if "ce" not in name) and losses["loss_ce"] > 0
    sum(losses.values()).backward()
    assert not output.mask_features.grad.any()


# ---- points ----


def test_point_losses():
    """With many points close to the losses over all pixels; the gradient reaches the logits; chunks change nothing."""
    targets, index = make_targets().masks, torch.tensor([3, 0, 3])
    logits = (3 * torch.randn(3, *SIZE)).requires_grad_()
    plain = MaskLosses(points=60000, oversample=1.0, importance=0.0)
    entropy, dice = point_losses(logits, targets, index, plain, torch.Generator().manual_seed(1))
    wide = F.interpolate(logits[None], FULL, mode="bilinear", align_corners=False)[0]
    truth = targets[index].float()
    probs = wide.sigmoid()
    torch.testing.assert_close(entropy, F.binary_cross_entropy_with_logits(wide, truth, reduction="none").mean((1, 2)), rtol=0.1, atol=0.02)
    expected = 1 - 2 * (probs * truth).sum((1, 2)) / (probs.sum((1, 2)) + truth.sum((1, 2)))
    torch.testing.assert_close(dice, expected, rtol=0.05, atol=0.02)
    (entropy.sum() + dice.sum()).backward()
    assert logits.grad.any()


def test_points_prefer_what_is_uncertain():
    logits = torch.full((1, *SIZE), 9.0)
    logits[0, :, 3] = 0.0
    points = mask_losses._uncertain_points(logits, MaskLosses(points=400), torch.Generator().manual_seed(2))
    assert points.shape == (1, 400, 2)
    near = ((points[0, :300, 0] * SIZE[1] - 3.5).abs() < 1).float().mean()
    assert near > 0.7 and ((points[0, 300:, 0] * SIZE[1] - 3.5).abs() < 1).float().mean() < 0.5  # some at the border: zeros beyond


def test_mask2former_runs_whole():
    output, targets = make_output(grad=True), make_targets((2, 0, 8))
    options = MaskLosses(class_weight=2.0, mask_weight=5.0, points=64)
    matches = match_masks(output, targets, MatchCosts(2.0, 5.0, 5.0, points=64))
    layers = supervised_layers(LAYERS, all_auxiliary=True)
    losses = mask_set_losses(output, targets, matches, torch.tensor(10.0), options, layers)
    assert len(losses) == 3 * LAYERS and all(value > 0 for value in losses.values()) and MASK2FORMER_LOSSES.points == 12544
    sum(losses.values()).backward()
    assert all(embedding.grad.any() for embedding in output.mask_embeddings)
