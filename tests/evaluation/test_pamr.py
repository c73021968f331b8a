"""PAMR against a loop over pixels and neighbours, written from the paper's formulas."""

import numpy as np
import pytest
import torch

from ofaseg.evaluation.pamr import DILATIONS, affinities, pamr


def naive_pamr(image, masks, iterations, dilations):
    """(C, H, W) image, (K, H, W) masks in float64; neighbours beyond the border are the border's pixels."""
    _, height, width = image.shape
    weights, places = np.zeros((height, width), object), np.zeros((height, width), object)
    for y in range(height):
        for x in range(width):
            around, places[y, x] = [], []
            for dilation in dilations:
                for row in (-dilation, 0, dilation):
                    for column in (-dilation, 0, dilation):
                        place = min(max(y + row, 0), height - 1), min(max(x + column, 0), width - 1)
                        around.append(image[:, place[0], place[1]])
                        if row or column:
                            places[y, x].append(place)
            deviation = np.std(around, axis=0, ddof=1)
            likeness = [-np.mean(np.abs(image[:, r, c] - image[:, y, x]) / (0.1 * deviation + 1e-8)) for r, c in places[y, x]]
            exponentials = np.exp(np.array(likeness) - max(likeness))
            weights[y, x] = exponentials / exponentials.sum()
    for _ in range(iterations):
        before, masks = masks, np.zeros_like(masks)
        for y in range(height):
            for x in range(width):
                for weight, (r, c) in zip(weights[y, x], places[y, x]):
                    masks[:, y, x] += weight * before[:, r, c]
    return masks


@pytest.mark.parametrize("iterations, dilations", [(1, (1,)), (3, (1, 2, 4)), (2, (3, 8))])
def test_equals_the_loop_over_pixels(iterations, dilations):
    rng = np.random.default_rng(iterations)
    image, masks = rng.random((3, 9, 13)) * [[[1]], [[10]], [[255]]], rng.random((2, 9, 13))
    expected = naive_pamr(image, masks, iterations, dilations)
    found = pamr(torch.from_numpy(image)[None], torch.from_numpy(masks)[None], iterations, dilations)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_a_mask_fills_the_area_of_its_colour():
    image = torch.zeros(1, 3, 40, 60)
    image[:, :, :, 30:] = torch.tensor([200.0, 90, 30]).view(1, 3, 1, 1)
    image += torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    rough = torch.zeros(1, 1, 40, 60)
    rough[..., 26:60] = 1  # four columns too many
    refined = pamr(image, rough) >= 0.5
    assert refined[..., 30:].float().mean() > 0.99 and refined[..., :30].float().mean() < 0.01


def test_batch_and_channels_stand_alone():
    generator = torch.Generator().manual_seed(0)
    image, masks = torch.rand(2, 3, 30, 20, generator=generator), torch.rand(2, 4, 30, 20, generator=generator)
    together = pamr(image, masks)
    for b in range(2):
        for k in range(4):
            torch.testing.assert_close(pamr(image[b : b + 1], masks[b : b + 1, k : k + 1])[0, 0], together[b, k])
    assert together.min() >= masks.min() and together.max() <= masks.max()


def test_scale_and_offset_of_the_image_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    image, masks = torch.rand(1, 3, 16, 24, generator=generator), torch.rand(1, 1, 16, 24, generator=generator)
    torch.testing.assert_close(pamr(image * 255 - 100, masks), pamr(image, masks), atol=1e-3, rtol=0)


def test_constant_images_average_all_neighbours():
    weights = affinities(torch.full((1, 3, 30, 31), 7.0))
    torch.testing.assert_close(weights, torch.full((1, 8 * len(DILATIONS), 30, 31), 1 / 48))
    assert torch.isfinite(pamr(torch.zeros(1, 3, 30, 31), torch.rand(1, 1, 30, 31))).all()


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 9\).*\(1, 2, 9, 8\)"):
        pamr(torch.rand(1, 3, 8, 9), torch.rand(1, 2, 9, 8))
    with pytest.raises(ValueError, match="dilations"):
        pamr(torch.rand(1, 3, 8, 9), torch.rand(1, 2, 8, 9), dilations=())
