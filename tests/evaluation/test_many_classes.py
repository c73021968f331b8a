"""The best class among thousands against resizing all scores."""

import pytest
import torch

from ofaseg.evaluation import many_classes, postprocess
from ofaseg.evaluation.many_classes import argmax_of_many, possible_winners, source_cells
from ofaseg.evaluation.postprocess import argmax_at_size, resize_scores
from tests.evaluation.test_postprocess import SIZES, assert_same_best_class, smooth_logits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape, size", [*SIZES, ((8, 8), (64, 48)), ((5, 7), (1, 1))])
@pytest.mark.parametrize("chunk", [300, 2**21])
def test_equals_resize_then_argmax(shape, size, chunk, monkeypatch):
    monkeypatch.setattr(many_classes, "CHUNK_ELEMENTS", chunk)
    noise = torch.randn(400, *shape, generator=torch.Generator().manual_seed(1))
    for logits in (smooth_logits(11, *shape), noise, noise.permute(1, 2, 0).contiguous().permute(2, 0, 1), noise.bfloat16().float()):
        assert_same_best_class(argmax_of_many(logits, size), resize_scores(logits, size))


def test_products_with_class_vectors_as_a_model_leaves_them():
    generator = torch.Generator().manual_seed(0)
    patches = smooth_logits(16, 9, 12).flatten(1).T
    logits = (patches @ torch.randn(16, 3000, generator=generator)).T.unflatten(1, (9, 12))
    found = argmax_at_size(logits, (72, 100))
    assert_same_best_class(found, resize_scores(logits, (72, 100)))
    assert len(found.unique()) > 20
    assert torch.equal(found, argmax_of_many(logits, (72, 100)))  # what 3,000 classes go through


def test_it_starts_at_many_classes(monkeypatch):
    monkeypatch.setattr(postprocess, "argmax_of_many", lambda logits, size: "many")
    assert argmax_at_size(torch.zeros(postprocess.MANY_CLASSES, 2, 2), (3, 3)) == "many"
    assert torch.equal(argmax_at_size(torch.zeros(postprocess.MANY_CLASSES - 1, 2, 2), (3, 3)), torch.zeros(3, 3, dtype=torch.long))


def test_every_class_that_wins_somewhere_stays_and_hopeless_ones_go():
    corners = torch.randn(4, 6, 40, generator=torch.Generator().manual_seed(2))
    corners[:, :, 39] = corners.amin(2) - 1  # below every class at every corner
    cell, name = possible_winners(tuple(corners))
    weights = torch.rand(2, 5000, generator=torch.Generator().manual_seed(3))
    mixed = torch.stack(
        [(1 - weights[0]) * (1 - weights[1]), (1 - weights[0]) * weights[1], weights[0] * (1 - weights[1]), weights.prod(0)]
    )
    winners = torch.einsum("cnk,cp->npk", corners, mixed).argmax(2)
    stays = set(zip(cell.tolist(), name.tolist()))
    assert {(n, k) for n in range(6) for k in winners[n].unique().tolist()} <= stays
    assert len(stays) < 6 * 39 and 39 not in name
    assert sorted(stays) == list(zip(cell.tolist(), name.tolist()))


def test_a_cell_whose_scores_are_not_numbers_costs_no_other():
    logits = smooth_logits(30, 4, 5)
    expected = argmax_of_many(logits, (16, 20))
    logits[:, 0, 0] = torch.nan
    assert torch.equal(argmax_of_many(logits, (16, 20))[6:, 6:], expected[6:, 6:])


def test_cells_are_those_of_interpolate():
    for points, length in ((7, 101), (8, 5), (1, 4), (4, 4)):
        ramp = torch.arange(points, dtype=torch.float32) ** 2
        cell, weight = source_cells(points, length)
        found = torch.lerp(ramp[cell], ramp[(cell + 1).clamp(max=points - 1)], weight)
        expected = torch.nn.functional.interpolate(ramp[None, None], size=length, mode="linear", align_corners=False)[0, 0]
        torch.testing.assert_close(found, expected)
        assert bool((weight >= 0).all()) and bool((weight <= 1).all())
