"""Nearest-neighbour resizing as Pillow does it; areas and boxes as numpy counts them."""

import numpy as np
import torch
from PIL import Image

from ofaseg.evaluation.mask_geometry import (
    any_true,
    boxes_of_masks,
    count_true,
    last_true,
    nearest_source,
    resize_nearest,
    segment_areas_and_boxes,
)


def test_pixels_are_those_of_pillow():
    """Also where a centre falls on the border of two pixels, so that rounding decides."""
    for size in (1, 2, 3, 7, 10, 480, 640, 853):
        line = Image.fromarray(np.arange(size, dtype=np.int32)[None])
        for target in (1, 2, 5, 6, 14, 35, 333, 480, 960, 1333):
            expected = np.array(line.resize((target, 1), Image.Resampling.NEAREST))[0] if target != size else np.arange(size)
            np.testing.assert_array_equal(nearest_source(size, target).numpy(), expected, err_msg=f"{size} -> {target}")


def test_both_sides_are_resized():
    maps = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (2, 13, 17)).astype(np.uint8))
    found = resize_nearest(maps, (29, 8))
    for before, after in zip(maps, found):
        np.testing.assert_array_equal(after.numpy(), np.array(Image.fromarray(before.numpy()).resize((8, 29), Image.Resampling.NEAREST)))


def test_boxes_of_masks():
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[0, 2:4, 5] = True
    masks[2] = True
    assert boxes_of_masks(masks).tolist() == [[5, 2, 6, 4], [0, 0, 0, 0], [0, 0, 9, 6]]
    assert boxes_of_masks(masks[:0]).shape == (0, 4)


def test_areas_and_boxes_of_segments():
    ids = torch.zeros(5, 7, dtype=torch.int32)
    ids[1:3, 2:6] = 3
    ids[4, 0] = 3
    ids[0, 6] = 1
    areas, boxes = segment_areas_and_boxes(ids, 4)
    assert areas.tolist() == [25, 1, 0, 9, 0]
    assert boxes[1:].tolist() == [[6, 0, 7, 1], [0, 0, 0, 0], [0, 1, 6, 5], [0, 0, 0, 0]]


def test_last_mask_of_each_pixel():
    """Also beyond the numbers that a byte holds."""
    masks = torch.from_numpy(np.random.default_rng(0).random((600, 6, 9)) < 0.004)
    masks[255] |= masks[254]
    masks[598:, 0, 0] = True
    counted = torch.arange(600) % 7 != 4  # 599 is not
    expected = np.full((6, 9), -1)
    for k, mask in enumerate(masks.numpy()):
        expected[mask & counted[k].item()] = k
    assert last_true(masks, counted).tolist() == expected.tolist() and (expected == -1).any() and len(np.unique(expected // 255)) > 3
    assert last_true(masks[:0], counted[:0]).tolist() == [[-1] * 9] * 6


def test_pixels_in_any_mask():
    masks = torch.from_numpy(np.random.default_rng(0).random((5, 6, 9)) < 0.1)
    for dim in range(3):
        assert torch.equal(any_true(masks, dim), masks.any(dim)) and not masks.any(dim).all()


def test_counts():
    masks = torch.from_numpy(np.random.default_rng(1).random((4, 6, 9)) < 0.5)[:, ::2]
    assert count_true(masks).tolist() == [int(mask.sum()) for mask in masks] and count_true(masks[:0]).tolist() == []
