"""Mask losses against their definition on upsampled logits, by autograd; matching against one photo and layer at a time."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ofaseg import mask_losses, mask_matching
from ofaseg.mask_losses import MASK2FORMER_LOSSES, MaskLosses, full_losses, mask_set_losses, point_losses, supervised_layers
from ofaseg.mask_matching import MASK2FORMER_COSTS, MatchCosts, match_masks
from ofaseg.structures import MaskOutput, MaskTargets
from ofaseg.utils.points import bilinear_points

QUERIES, CLASSES, LAYERS, SIZE, FULL = 6, 4, 4, (5, 7), (20, 28)


def make_output(batch: int = 3, grad: bool = False) -> MaskOutput:
    def some(*shape):
        return torch.randn(*shape).requires_grad_(grad)

    logits = tuple(some(batch, QUERIES, CLASSES + 1) for _ in range(LAYERS))
    return MaskOutput(logits, tuple(some(batch, QUERIES, 8) for _ in range(LAYERS)), some(batch, 8, *SIZE))


def make_targets(counts=(2, 0, 8)) -> MaskTargets:
    """Rectangles; the third photo has more of them than there are queries, and an empty mask among them."""
    masks = torch.zeros(sum(counts), *FULL, dtype=torch.bool)
    for n, mask in enumerate(masks[:-1]):
        mask[n : n + 7, 2 * n : 3 * n + 9] = True
    return MaskTargets(masks, torch.arange(sum(counts)) % CLASSES, tuple(counts))


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


# ---- matching ----


def costs_of(class_logits, mask_logits, masks, classes, costs: MatchCosts):
    """(Q, N) pair by pair, from the definitions."""
    probs = class_logits.softmax(-1)
    small = F.interpolate(masks[None].float(), SIZE, mode="nearest")[0]
    table = np.zeros((QUERIES, len(masks)))
    for q, n in itertools.product(range(QUERIES), range(len(masks))):
        x, truth = mask_logits[q], small[n]
        p = x.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(x, truth, reduction="none")
        right = p * truth + (1 - p) * (1 - truth)
        focal = ((costs.alpha * truth + (1 - costs.alpha) * (1 - truth)) * entropy * (1 - right) ** 2).mean()
        dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
        table[q, n] = -costs.class_weight * probs[q, classes[n]] + costs.mask_weight * focal + costs.dice_weight * dice
    return table


def cheapest(table) -> float:
    """The least sum over all assignments, by trying them."""
    if table.shape[0] < table.shape[1]:
        table = table.T
    return min(sum(table[q, n] for n, q in enumerate(rows)) for rows in itertools.permutations(range(table.shape[0]), table.shape[1]))


@pytest.mark.parametrize("chunk", [1, 2**21])
def test_matching_against_every_assignment(monkeypatch, chunk):
    monkeypatch.setitem(mask_matching.CHUNK_ELEMENTS, "cpu", chunk)
    output, targets, costs = make_output(), make_targets((2, 0, 4)), MatchCosts(3.0, 7.0, 5.0)
    layers = [3, 0]
    matches = match_masks(output, targets, costs, layers)
    assert [match.queries.shape for match in matches] == [(2, 2), (2, 0), (2, 4)]
    for photo, (start, count) in enumerate(zip(targets.starts, targets.counts)):
        for row, layer in enumerate(layers):
            queries, chosen = matches[photo].queries[row], matches[photo].targets[row]
            assert len(set(queries.tolist())) == len(set(chosen.tolist())) == count and queries.tolist() == sorted(queries.tolist())
            if count:
                own = slice(start, start + count)
                masks = output.layer_mask_logits(layer)[photo]
                table = costs_of(output.class_logits[layer][photo], masks, targets.masks[own], targets.classes[own], costs)
                assert abs(table[queries, chosen].sum() - cheapest(table)) < 1e-4


def test_more_masks_than_queries_and_numbers_that_are_none():
    output = make_output()
    matches = match_masks(output, make_targets((2, 0, 8)))
    assert matches[2].queries.shape == (LAYERS, QUERIES) and sorted(matches[2].targets[0].tolist()) == sorted(
        set(matches[2].targets[0].tolist())
    )
    broken = output._replace(class_logits=tuple(logits * float("nan") for logits in output.class_logits))
    assert match_masks(broken, make_targets((2, 0, 3)))[2].queries.shape == (LAYERS, 3)


def test_matching_at_points():
    """A query that is a target's mask is found, whatever the points; points depend on the generator alone."""
    targets = make_targets((3,))
    small = F.interpolate(targets.masks[None].float(), SIZE, mode="area")[0]
    features = torch.cat([small, torch.zeros(5, *SIZE)])[None]
    embeddings = torch.zeros(1, QUERIES, 8)
    for query, target in ((4, 0), (1, 1), (3, 2)):
        embeddings[0, query, target] = 40.0
    embeddings[0, :, :3] -= 10.0
    output = MaskOutput((torch.zeros(1, QUERIES, CLASSES + 1),), (embeddings,), features)
    costs = MatchCosts(class_weight=2.0, mask_weight=5.0, points=300)
    match = match_masks(output, targets, costs, generator=torch.Generator().manual_seed(3))[0]
    assert dict(zip(match.targets[0].tolist()[:3], match.queries[0].tolist()))[1] == 1
    again = match_masks(output, targets, costs, generator=torch.Generator().manual_seed(3))[0]
    assert torch.equal(match.queries, again.queries) and MASK2FORMER_COSTS.points == 12544


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


def test_points_between_pixels():
    masks = make_targets().masks
    points = torch.rand(len(masks), 40, 2) * 1.2 - 0.1
    expected = F.grid_sample(masks[:, None].float(), 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(bilinear_points(masks, points), expected, atol=1e-5, rtol=0)


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
