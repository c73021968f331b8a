"""The lattice against a loop over points with dictionaries, and against sums over all pairs of points."""

import itertools

import numpy as np
import pytest
import torch

from ofaseg.evaluation import permutohedral
from ofaseg.evaluation.permutohedral import KeyTable, Lattice


def naive_filter(features, values):
    """(N, d) features, (N, C) values: the paper's algorithm point by point in float64, corners in a dictionary."""
    d = features.shape[1]
    basis = np.zeros((d + 1, d))  # columns span the plane of sum 0, all of one length
    for j in range(d):
        basis[: j + 1, j], basis[j + 1, j] = 1, -(j + 1)
        basis[:, j] /= np.sqrt((j + 1) * (j + 2))
    elevated = features.astype(np.float64) @ basis.T * np.sqrt(2 / 3) * (d + 1)
    corners_of_point, cells = [], {}
    for point, value in zip(elevated, values):
        down = np.floor(point / (d + 1)) * (d + 1)
        candidates = [down + (d + 1) * np.array(up) for up in itertools.product((0, 1), repeat=d + 1)]
        zero = min((c for c in candidates if c.sum() == 0), key=lambda c: np.square(point - c).sum())
        order = np.argsort(-(point - zero), kind="stable")
        above = (point - zero)[order] / (d + 1)
        shares = []
        for colour in range(d + 1):
            corner = zero + colour
            corner[order[d + 1 - colour :]] -= d + 1
            weight = 1 + above[-1] - above[0] if colour == 0 else above[d - colour] - above[d - colour + 1]
            shares.append((tuple(corner.astype(int)), weight))
        assert abs(sum(weight for _, weight in shares) - 1) < 1e-9 and min(weight for _, weight in shares) > -1e-9
        rebuilt = sum(weight * np.array(corner) for corner, weight in shares)
        assert np.allclose(rebuilt, point)  # these are the barycentric coordinates
        corners_of_point.append(shares)
        for corner, weight in shares:
            cells[corner] = cells.get(corner, 0) + weight * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] -= d + 1
        cells = {
            corner: value + 0.5 * (cells.get(tuple(corner + step), 0) + cells.get(tuple(corner - step), 0))
            for corner, value in cells.items()
        }
    result = [sum(weight * cells[corner] for corner, weight in shares) for shares in corners_of_point]
    return np.array(result) / (1 + 2.0**-d), len(cells)


@pytest.mark.parametrize("d, points, spread", [(1, 40, 3.0), (2, 150, 2.0), (3, 80, 1.0), (5, 120, 1.5)])
def test_equals_the_loop_over_points(d, points, spread):
    rng = np.random.default_rng(d)
    features = (rng.standard_normal((points, d)) * spread).astype(np.float32)
    values = rng.standard_normal((points, 3)).astype(np.float32)
    expected, vertices = naive_filter(features, values)
    lattice = Lattice(torch.from_numpy(features.T.copy()))
    found = lattice.filter(torch.from_numpy(values.T.copy()))
    assert lattice.num_vertices == vertices
    np.testing.assert_allclose(found.T.numpy(), expected, atol=2e-5)
    torch.testing.assert_close(lattice.weights.sum(0), torch.ones(points))


@pytest.mark.parametrize("deviation", [3.0, 5.0])
def test_approaches_the_sum_over_all_pairs(deviation):
    """On a grid, means under the lattice's kernel are those under the Gaussian; the paper's kernel is a little too narrow."""
    ys, xs = torch.meshgrid(torch.arange(24.0), torch.arange(31.0), indexing="ij")
    features = torch.stack([xs, ys]).flatten(1) / deviation
    values = torch.stack([torch.sin(xs / 7) * torch.cos(ys / 5), (xs > 11).float()]).flatten(1)
    kernel = torch.exp(-0.5 * torch.cdist(features.T, features.T).square())
    lattice = Lattice(features)
    means = lattice.filter(values) / lattice.filter(torch.ones_like(values[:1]))
    assert (means - values @ kernel / kernel.sum(1)).abs().max() < 0.05
    assert (values - values @ kernel / kernel.sum(1)).abs().max() > 0.3  # the filter did something


def test_the_filter_is_linear_and_works_channel_by_channel(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    lattice = Lattice(torch.randn(5, 90, generator=generator))
    matrix = lattice.filter(torch.eye(90))
    values = torch.randn(7, 90, generator=generator)
    torch.testing.assert_close(lattice.filter(values), values @ matrix, atol=1e-5, rtol=0)
    whole = lattice.filter(values)
    monkeypatch.setattr(permutohedral, "CHUNK_ELEMENTS", 200)
    assert torch.equal(lattice.filter(values), whole)
    factors = torch.rand(90, generator=generator)
    lattice.scale_symmetrically(factors)
    torch.testing.assert_close(lattice.filter(torch.eye(90)), factors[:, None] * matrix * factors, atol=1e-6, rtol=0)


def test_all_points_in_one_place():
    lattice = Lattice(torch.zeros(5, 10))
    found = lattice.filter(torch.arange(10.0)[None])
    torch.testing.assert_close(found, found[:, :1].expand(1, 10))
    assert lattice.num_vertices == 6


def test_points_that_no_key_can_hold():
    with pytest.raises(ValueError, match="larger standard deviations"):
        Lattice(torch.tensor([[0.0, 1e6]] * 5))
    with pytest.raises(ValueError, match="finite"):
        Lattice(torch.tensor([[0.0, float("nan")]] * 5))
    with pytest.raises(ValueError, match="at least one point"):
        Lattice(torch.zeros(2, 0))


@pytest.mark.parametrize("repeats", [1, 4, 1000])
def test_key_table_equals_a_dictionary(repeats):
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**60), 2**60, 400)[rng.integers(0, 400, 3000)]
    table = KeyTable(torch.from_numpy(keys), repeats)
    assert sorted(table.unique.tolist()) == sorted(set(keys.tolist()))
    assert torch.equal(table.unique[table.number], torch.from_numpy(keys))
    place = {key: i for i, key in enumerate(table.unique.tolist())}
    queries = np.concatenate([keys[:500], keys[:500] + 1, np.arange(-50, 50)])
    assert table.find(torch.from_numpy(queries)).tolist() == [place.get(q, len(place)) for q in queries.tolist()]
