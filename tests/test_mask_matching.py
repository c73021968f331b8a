"""Matching against one photo, layer and pair at a time, and against every assignment; odd numbers of masks; points."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ofaseg import mask_matching
from ofaseg.mask_matching import MASK2FORMER_COSTS, MatchCosts, match_masks
from ofaseg.structures import MaskOutput
from tests.mask_batches import CLASSES, LAYERS, QUERIES, SIZE, make_output, make_targets


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
