"""Candidates against the published procedure written out: a float64 volume of masks times scores, and its argmax."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from ofaseg.evaluation import refine
from ofaseg.evaluation.candidates import candidate_classes, foreground_maps, paint, segment_by_candidates
from ofaseg.evaluation.zero_shot_settings import ZeroShotSettings
from ofaseg.structures import DenseOutput

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = ZeroShotSettings(top_m=10, candidates=5, std_factor=1.0, background_class=0)
SIDE = 48


def naive_candidates(scores, settings):
    """Steps 4 and 7 with the statistics of numpy in float64; equal scores in the order of their ids."""
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], k))[: settings.top_m]
    top = np.array([scores[k] for k in order], dtype=np.float64)
    threshold = top.mean() + (top.std(ddof=1) if len(top) > 1 else 0.0)
    chosen = []
    for k in order[: settings.candidates]:
        if k == 0:
            continue
        if scores[k] < threshold:
            break
        chosen.append(k)
    return chosen


def naive_label_map(maps, scores, size, settings):
    """Steps 6 to 8 with OpenCV and numpy; the CRF is a threshold of 0.5."""
    volume = np.zeros((len(scores), *size))
    for k in naive_candidates(scores.tolist(), settings):
        wide = np.kron(maps[k], np.ones((SIDE // maps.shape[1], SIDE // maps.shape[2]), dtype=np.float32))
        mask = ((wide - wide.min()) / (wide.max() - wide.min()) >= 0.5).astype(np.uint8) * 255
        kernel = np.ones((7, 7), np.uint8)
        mask = cv2.erode(cv2.dilate(mask, kernel), kernel)
        volume[k] = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST) * np.float64(scores[k])
    return volume.argmax(0)


def random_case(classes, seed, grid=(6, 6)):
    generator = torch.Generator().manual_seed(seed)
    maps, scores = torch.randn(classes, *grid, generator=generator), torch.randn(classes, generator=generator)
    return maps, scores * (1 + 3 * (torch.rand(classes, generator=generator) > 0.7))


def segment(maps, scores, sizes, settings=SETTINGS, **options):
    images = torch.randint(0, 256, (len(maps), SIDE, SIDE, 3), dtype=torch.uint8)
    output = DenseOutput(maps, None, scores)
    return [result.label_map for result in segment_by_candidates(output, images, sizes, settings, **({"refine": "threshold"} | options))]


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 9, 10, 21])
def test_equals_the_published_procedure(classes):
    kinds = set()
    for seed in range(12):
        maps, scores = random_case(classes, seed)
        if seed % 4 == 1:
            scores = (scores * 2).round() / 2  # ties
        if seed % 4 == 2:
            scores = scores - scores.max() - 0.1  # all negative: nothing beats the background
        for size in ((33, 50), (97, 48)):
            found = segment(maps[None], scores[None], [size])[0]
            expected = naive_label_map(maps.numpy(), scores.numpy(), size, SETTINGS)
            assert np.array_equal(found.numpy(), expected), (seed, size)
            kinds.add(len(np.unique(expected)))
    assert max(kinds) >= {1: 1, 2: 1, 3: 2, 4: 2, 9: 3, 10: 3, 21: 3}[classes], "the cases show something"


def test_candidates_of_many_random_scores():
    sizes = set()
    for seed in range(300):
        _, scores = random_case(3 + seed % 25, seed)
        found = candidate_classes(scores, SETTINGS)
        assert [k for k, _ in found] == naive_candidates(scores.tolist(), SETTINGS), seed
        assert all(score == float(scores[k]) for k, score in found)
        sizes.add(len(found))
    assert sizes >= {0, 1, 2, 3}


@pytest.mark.parametrize(
    "scores, chosen",
    [
        ([0.1, 0.9, 0.1, 0.1, 0.1], [1]),
        ([0.9, 0.1, 0.1, 0.1, 0.1], []),  # the background is the only one above the threshold
        ([0.9, 0.1, 0.89, 0.1, 0.1, 0.1, 0.1], [2]),  # it takes a place, but does not stop the others
        ([0.3], []),
        ([0.2, 0.7], []),  # of two scores none is a standard deviation above their mean
        ([0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1, 2]),
    ],
)
def test_candidates_by_hand(scores, chosen):
    assert [k for k, _ in candidate_classes(torch.tensor(scores), SETTINGS)] == chosen


def test_the_background_takes_one_of_the_places():
    scores = torch.tensor([0.9, *[0.8 - 0.001 * k for k in range(6)], *[-1.0] * 30])
    settings = ZeroShotSettings(30, 5, 1.0, 0)
    assert [k for k, _ in candidate_classes(scores, settings)] == [1, 2, 3, 4]
    assert [k for k, _ in candidate_classes(scores, dataclasses.replace(settings, background_class=None))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("background", [0, 7])
def test_paint_by_hand(background):
    masks = torch.tensor([[[1, 1, 1, 0, 0, 0]], [[0, 1, 1, 1, 0, 0]], [[0, 0, 1, 1, 1, 0]], [[1, 1, 1, 1, 1, 0]]], dtype=torch.bool)
    found = paint(masks, [(4, 0.5), (2, 0.5), (3, 0.7), (1, -0.1)], background)
    assert found.tolist() == [[4, 2, 3, 3, 3, background]]


def test_scores_of_exactly_zero_lose_against_the_background():
    assert paint(torch.ones(1, 1, 2, dtype=torch.bool), [(3, 0.0)]).tolist() == [[0, 0]]


def test_without_a_background_unclaimed_pixels_take_their_best_class():
    """Also where the one candidate's score is negative: there is nothing it could lose against."""
    settings = dataclasses.replace(SETTINGS, background_class=None)
    maps = torch.zeros(4, 2, 2)
    maps[0, 0, 0], maps[3, 0, 1], maps[1, 1, 0], maps[2, 1, 1] = 1.0, 1.0, 1.0, 1.0
    maps[2, 1, 0] = 0.6  # class 2 claims the lower half
    scores = torch.tensor([-0.9, -0.9, -0.1, -0.9])
    found = segment(maps[None], scores[None], [(4, 6)], settings)[0]
    assert found.tolist() == [[0, 0, 0, 3, 3, 3]] * 2 + [[2] * 6] * 2
    nobody = segment(maps[None], torch.zeros(1, 4), [(4, 4)], dataclasses.replace(settings, std_factor=9.0, candidates=1))[0]
    assert nobody.tolist()[0][0] == 0 and nobody.dtype == torch.long


def test_constant_maps_claim_nothing():
    maps = torch.full((1, 3, 4, 4), 0.25)
    found = segment(maps, torch.tensor([[0.0, 0.9, 0.0]]), [(20, 20)])[0]
    assert not found.any()
    stretched = foreground_maps(torch.stack([maps[0, 0], torch.eye(4)]), (8, 12))
    assert stretched.isfinite().all() and not stretched[0].any()
    assert torch.equal(stretched[1], torch.eye(4).repeat_interleave(2, 0).repeat_interleave(3, 1))


def test_photos_do_not_depend_on_their_batch():
    cases = [random_case(12, seed) for seed in range(4)]
    maps, scores = (torch.stack(parts) for parts in zip(*cases))
    sizes = [(30, 40), (50, 20), (48, 48), (31, 77)]
    together = segment(maps, scores, sizes)
    assert [tuple(found.shape) for found in together] == sizes
    for b in range(4):
        assert torch.equal(segment(maps[b : b + 1], scores[b : b + 1], sizes[b : b + 1])[0], together[b])


def test_refinements_run_for_chosen_classes_only_and_see_their_own_photo(monkeypatch):
    seen = []

    def note(image, maps, threshold):
        seen.append((int(image[0, 0, 0]), len(maps), threshold))
        return maps >= threshold

    monkeypatch.setitem(refine.REFINEMENTS, "note", note)
    maps = torch.randn(3, 5, 4, 4)
    scores = torch.tensor([[0.1, 0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0, 0.9]])
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 8, 8, 3)
    segment_by_candidates(DenseOutput(maps, None, scores), images, [(8, 8)] * 3, SETTINGS, "note", 0.3)
    assert seen == [(0, 1, 0.3), (2, 1, 0.3)]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="needs scores of whole photos"):
        segment(torch.zeros(1, 3, 4, 4), None, [(4, 4)])
    with pytest.raises(ValueError, match="unknown mask refinement 'crf'; there are dense_crf, pamr, pydensecrf, threshold"):
        segment(torch.randn(1, 3, 4, 4), torch.tensor([[0.0, 0.9, 0.0]]), [(4, 4)], refine="crf")
