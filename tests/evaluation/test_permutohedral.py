"""The lattice against a loop over points with dictionaries, and against sums over all pairs of points."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ofaseg.evaluation import compiled_lattice, permutohedral
from ofaseg.evaluation.compiled_lattice import CompiledLattice
from ofaseg.evaluation.permutohedral import KeyTable, Lattice

both_lattices = pytest.mark.parametrize("make", [Lattice, CompiledLattice])


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


@both_lattices
@pytest.mark.parametrize("d, points, spread", [(1, 40, 3.0), (2, 150, 2.0), (3, 80, 1.0), (5, 120, 1.5)])
def test_equals_the_loop_over_points(make, d, points, spread):
    rng = np.random.default_rng(d)
    features = (rng.standard_normal((points, d)) * spread).astype(np.float32)
    values = rng.standard_normal((points, 3)).astype(np.float32)
    expected, vertices = naive_filter(features, values)
    lattice = make(torch.from_numpy(features.T.copy()))
    found = lattice.filter(torch.from_numpy(values.T.copy()))
    assert lattice.num_vertices == vertices
    np.testing.assert_allclose(found.T.numpy(), expected, atol=2e-5)
    torch.testing.assert_close(lattice.weights.sum(0), torch.ones(points))


@both_lattices
@pytest.mark.parametrize("deviation", [3.0, 5.0])
def test_approaches_the_sum_over_all_pairs(make, deviation):
    """On a grid, means under the lattice's kernel are those under the Gaussian; the paper's kernel is a little too narrow."""
    ys, xs = torch.meshgrid(torch.arange(24.0), torch.arange(31.0), indexing="ij")
    features = torch.stack([xs, ys]).flatten(1) / deviation
    values = torch.stack([torch.sin(xs / 7) * torch.cos(ys / 5), (xs > 11).float()]).flatten(1)
    kernel = torch.exp(-0.5 * torch.cdist(features.T, features.T).square())
    lattice = make(features)
    means = lattice.filter(values) / lattice.filter(torch.ones_like(values[:1]))
    assert (means - values @ kernel / kernel.sum(1)).abs().max() < 0.05
    assert (values - values @ kernel / kernel.sum(1)).abs().max() > 0.3  # the filter did something


@both_lattices
def test_the_filter_is_linear_and_works_channel_by_channel(make, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    lattice = make(torch.randn(5, 90, generator=generator))
    matrix = lattice.filter(torch.eye(90))
    values = torch.randn(7, 90, generator=generator)
    torch.testing.assert_close(lattice.filter(values), values @ matrix, atol=1e-5, rtol=0)
    whole = lattice.filter(values)
    monkeypatch.setattr(permutohedral, "CHUNK_ELEMENTS", 200)
    assert torch.equal(lattice.filter(values), whole)
    factors = torch.rand(90, generator=generator)
    lattice.scale_symmetrically(factors)
    torch.testing.assert_close(lattice.filter(torch.eye(90)), factors[:, None] * matrix * factors, atol=1e-6, rtol=0)


@both_lattices
def test_all_points_in_one_place(make):
    lattice = make(torch.zeros(5, 10))
    found = lattice.filter(torch.arange(10.0)[None])
    torch.testing.assert_close(found, found[:, :1].expand(1, 10))
    assert lattice.num_vertices == 6


@both_lattices
def test_points_that_no_key_can_hold(make):
    with pytest.raises(ValueError, match="larger standard deviations"):
        make(torch.tensor([[0.0, 1e6]] * 5))
    with pytest.raises(ValueError, match="finite"):
        make(torch.tensor([[0.0, float("nan")]] * 5))
    with pytest.raises(ValueError, match="at least one point"):
        make(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="larger standard deviations"):  # float32 tells no simplices apart there
        make(torch.rand(2, 500, generator=torch.Generator().manual_seed(0)) * 5e7)
    for d in (0, 11):
        with pytest.raises(ValueError, match="d from 1 to 10"):
            make(torch.zeros(d, 3))
    edge = permutohedral.key_limit(2) / 4  # within reach: lattice cells are about 2.4 times the features
    assert make(torch.tensor([[0.0, edge], [edge, 0.0]])).num_vertices == 6


def colour_features(height=90, width=110):
    """(5, N): places and noisy colours as of a photo, enough of them for tables to grow several times and blocks to end anywhere."""
    generator = torch.Generator().manual_seed(3)
    ys, xs = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    colours = torch.stack([xs * 2, ys, xs + ys]) + 12 * torch.randn(3, height, width, generator=generator)
    return torch.cat([torch.stack([xs, ys]) / 20, colours / 13]).flatten(1)


def test_both_lattices_are_the_same():
    features = colour_features()
    tensors, loops = Lattice(features), CompiledLattice(features)
    assert loops.num_vertices == tensors.num_vertices > 2**compiled_lattice.FIRST_TABLE_BITS  # its table has grown
    torch.testing.assert_close(loops.weights, tensors.weights, atol=1e-5, rtol=0)
    for ids in (loops.vertex_ids, tensors.vertex_ids):  # points share corners in the same way, whatever their numbers
        assert ids.min() == 0 and ids.max() == tensors.num_vertices - 1
    pairs = torch.stack([loops.vertex_ids.flatten(), tensors.vertex_ids.flatten()]).unique(dim=1)
    assert pairs.shape[1] == tensors.num_vertices
    values = torch.rand(3, features.shape[1], generator=torch.Generator().manual_seed(4))
    expected = tensors.filter(values)
    torch.testing.assert_close(loops.filter(values), expected, atol=0, rtol=1e-5)
    factors = expected[0].rsqrt()
    tensors.scale_symmetrically(factors), loops.scale_symmetrically(factors)
    torch.testing.assert_close(loops.filter(values), tensors.filter(values), atol=0, rtol=1e-4)


def test_threads_filter_at_once():
    lattice, values = CompiledLattice(colour_features()), torch.rand(4, 9900)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = lattice.filter(values)
        with ThreadPoolExecutor(4) as pool:
            filtered = list(pool.map(lambda channel: lattice.filter(channel[None])[0], values))
        torch.set_num_threads(3)
        assert torch.equal(torch.stack(filtered), expected) and torch.equal(lattice.filter(values), expected)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_values_that_are_not_those_of_the_points():
    lattice = CompiledLattice(colour_features(8, 9))
    for shape in ((1, 71), (1, 73), (72,), (1, 1, 72)):  # no loop checks its indices
        with pytest.raises(ValueError, match="for 72 points"):
            lattice.filter(torch.ones(shape))
    values = torch.rand(72, 2, dtype=torch.float64).T  # neither contiguous nor float32
    assert torch.equal(lattice.filter(values), lattice.filter(values.float().contiguous()))


def test_without_a_folder_for_compiled_code(monkeypatch, caplog):
    def no_folder(cache, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")

    assert compiled_lattice._options() == {"nogil": True, "cache": True} and not caplog.records
    monkeypatch.setattr(compiled_lattice, "njit", lambda **options: lambda function: no_folder(**options))
    assert compiled_lattice._options() == {"nogil": True, "cache": False}
    assert "NUMBA_CACHE_DIR" in caplog.text and "no locator" in caplog.text


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
