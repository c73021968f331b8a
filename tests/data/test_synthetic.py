import numpy as np
import pytest
import torch

from ofaseg.data.synthetic import ArtificialImageSampler, resize_nearest


def sampler(**changes):
    arguments = dict(num_classes=15, grid_size=(32, 32), target_size=(512, 512), min_side=1, max_side=32, seed=1) | changes
    return ArtificialImageSampler(**arguments)


@pytest.mark.parametrize("source, target", [(5, 32), (32, 512), (7, 512), (13, 31)])
def test_nearest_rule_is_the_one_of_torch(source, target):
    grid = np.random.default_rng(0).integers(0, 9, (source, source + 1))
    expected = torch.nn.functional.interpolate(torch.from_numpy(grid)[None, None].double(), (target, target + 3), mode="nearest")
    assert np.array_equal(resize_nearest(grid, target, target + 3), expected[0, 0].numpy())


def test_a_sample_is_a_pure_function_of_seed_epoch_and_index():
    first = sampler()(3, 7)
    assert all(np.array_equal(a, b) for a, b in zip(first, sampler()(3, 7)))
    for other in (sampler()(3, 8), sampler()(4, 7), sampler(seed=2)(3, 7)):
        assert not np.array_equal(first[1], other[1])


def test_both_maps_come_from_one_layout_and_sides_cover_the_range():
    sides = set()
    for index in range(200):
        grid, target = sampler()(1, index)
        assert grid.shape == (32, 32) and target.shape == (512, 512) and grid.dtype == target.dtype == np.int64
        assert 0 <= target.min() and target.max() < 15
        # where the layout divides the grid, the grid is the top-left pixel of each cell
        changes = 1 + int((target[1:] != target[:-1]).any(axis=1).sum())
        if 32 % changes == 0:
            assert np.array_equal(grid[:, 0], target[::16, 0])
        sides.add(changes)
    assert max(sides) > 28 and min(sides) < 4


def test_impossible_sides_are_refused():
    with pytest.raises(ValueError, match="1 <= min <= max"):
        sampler(min_side=5, max_side=4)
