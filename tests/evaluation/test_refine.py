"""Refinement by name; closing and resizing against OpenCV itself and against plain loops."""

import numpy as np
import pytest
import torch

from ofaseg.evaluation.dense_crf import binary_crf
from ofaseg.evaluation.pamr import pamr
from ofaseg.evaluation.refine import REFINEMENTS, close_holes, nearest_resize, refine_masks


def noisy_halves(height=24, width=34):
    """An image of two colours and two soft maps of its right half, one of them with a hole."""
    image = np.full((height, width, 3), [40, 60, 80], np.uint8)
    image[:, width // 2 :] = [200, 120, 40]
    maps = torch.full((2, height, width), 0.2)
    maps[:, :, width // 2 + 2 :] = 0.9
    maps[1, 8:10, 25:27] = 0.3
    return image, maps


def test_every_name_gives_its_method():
    image, maps = noisy_halves()
    half = torch.arange(34).expand(2, 24, 34) >= 17
    assert torch.equal(refine_masks("dense_crf", image, maps), half)  # edges moved to the colours' border, hole filled
    image = np.random.default_rng(0).integers(0, 255, image.shape, dtype=np.uint8)
    maps = torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    assert set(REFINEMENTS) == {"dense_crf", "pydensecrf", "pamr", "threshold"}
    found = {name: refine_masks(name, image, maps) for name in REFINEMENTS if name != "pydensecrf"}
    assert torch.equal(found["dense_crf"], binary_crf(image, maps))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    assert torch.equal(found["pamr"], pamr(pixels, maps[None])[0] >= 0.5)
    assert torch.equal(found["threshold"], maps >= 0.5)
    assert len({masks.numpy().tobytes() for masks in found.values()}) == 3


def test_the_threshold_is_the_caller_s():
    image, maps = noisy_halves()
    assert torch.equal(refine_masks("threshold", image, maps, 0.1), torch.ones_like(maps, dtype=torch.bool))
    assert refine_masks("pamr", image, maps, 0.1).float().mean() > refine_masks("pamr", image, maps, 0.8).float().mean()


def test_unknown_names_and_sizes():
    image, maps = noisy_halves()
    with pytest.raises(ValueError, match="'none'; there are dense_crf, pamr, pydensecrf, threshold"):
        refine_masks("none", image, maps)
    with pytest.raises(ValueError, match=r"\(24, 34, 3\).*\(2, 34, 24\)"):
        refine_masks("threshold", image, maps.transpose(1, 2))


@pytest.mark.parametrize("kernel, size, density", [(7, (40, 61), 0.02), (7, (288, 288), 0.01), (3, (15, 9), 0.2), (5, (4, 3), 0.3)])
def test_closing_is_opencv_s(kernel, size, density):
    cv2 = pytest.importorskip("cv2")
    masks = np.random.default_rng(kernel).random((3, *size)) < density
    masks[:, -1, 0] = True  # borders and corners
    ones = np.ones((kernel, kernel), np.uint8)
    expected = np.stack([cv2.erode(cv2.dilate(mask.astype(np.uint8) * 255, ones), ones) > 0 for mask in masks])
    found = close_holes(torch.from_numpy(masks), kernel)
    assert found.dtype == torch.bool and torch.equal(found, torch.from_numpy(expected))
    assert (expected != masks).any() and (not expected.all() or size == (4, 3))
    assert torch.equal(close_holes(torch.from_numpy(masks[1]), kernel), found[1])


def test_closing_by_hand():
    mask = torch.ones(1, 21, 21, dtype=torch.bool)
    mask[0, 9:12, 9:12] = False  # a hole that a 7 x 7 square covers
    mask[0, :, 0:1] = False  # at the border, where nothing outside stands against it
    assert close_holes(mask)[0].all()
    mask = torch.ones(1, 30, 30, dtype=torch.bool)
    mask[0, 10:18, 10:18] = False  # one pixel too wide
    assert torch.equal(close_holes(mask), mask)
    assert close_holes(torch.zeros(0, 5, 6, dtype=torch.bool)).shape == (0, 5, 6)
    with pytest.raises(ValueError, match="odd"):
        close_holes(mask, 4)


def test_nearest_resize_is_opencv_s():
    cv2 = pytest.importorskip("cv2")
    source = np.arange(288, dtype=np.float32)
    for wanted in [*range(1, 1200), 1999, 4032]:  # row and column rule alike: one long row each
        expected = cv2.resize(source[None], (wanted, 1), interpolation=cv2.INTER_NEAREST)[0]
        found = nearest_resize(torch.from_numpy(source)[None, None], (1, wanted))[0, 0]
        assert np.array_equal(found.numpy(), expected), wanted


@pytest.mark.parametrize("now, wanted", [((288, 288), (480, 640)), ((37, 52), (375, 500)), ((100, 60), (33, 71)), ((5, 9), (5, 9))])
def test_nearest_resize_of_masks(now, wanted):
    cv2 = pytest.importorskip("cv2")
    masks = np.random.default_rng(0).random((2, *now)) < 0.5
    expected = [cv2.resize(mask.astype(np.uint8), wanted[::-1], interpolation=cv2.INTER_NEAREST) for mask in masks]
    found = nearest_resize(torch.from_numpy(masks), wanted)
    assert found.dtype == torch.bool and np.array_equal(found.numpy(), np.stack(expected).astype(bool))
