"""The lattice of `ofaseg.evaluation.permutohedral` in loops over points that numba compiles: for CPUs, several times as quick.

The same up to rounding (which, near a tie, chooses between simplices that touch). numba brings its compiler in a wheel; what it makes
is kept beside this file (or in the user's cache folder) for later runs. It follows changes of this file, not of constants that are
imported. No loop holds Python's lock, so threads can filter at once. Loops do not check indices: their callers check shapes. Slices
are filled by loops: numba would compile messages for shapes that do not fit, for seconds.
"""

import logging

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ofaseg.evaluation.permutohedral import GOLDEN_RATIO, NO_KEY, check_features, elevation, key_bits, key_limit, too_far
from ofaseg.utils.threads import one_core_each

logger = logging.getLogger(__name__)

BLOCK = 256
"""Points whose coordinates are worked on at once: they stay in the nearest cache, and loops over them use the CPU's wide registers."""

FIRST_TABLE_BITS = 12
"""The table of corners starts with 2**12 slots; it doubles whenever a quarter of them are taken."""


def _options() -> dict:
    """How functions are compiled: without Python's lock, and kept on disk where a folder for that can be written."""
    options = {"nogil": True, "cache": True}
    try:
        njit(**options)(check_features)
    except RuntimeError as error:
        logger.warning("the dense CRF is compiled anew in every process; set NUMBA_CACHE_DIR to a folder that can be written (%s)", error)
        options["cache"] = False
    return options


_compiled = njit(**_options())
"""Decorates functions, which are compiled when they are first called."""


class CompiledLattice:
    """`permutohedral.Lattice` for points on the CPU: arguments, attributes and methods as there; values of any type become float32.

    Raises:
        ValueError: positions too far apart for a key of 64 bits, or not finite.
    """

    interleaved = 1
    """Neighbouring points may follow each other: their shared corners are in the nearest cache, and no sum of another waits."""

    @torch.no_grad()
    def __init__(self, features: Tensor):
        check_features(features)
        d, points = features.shape
        factors, limit = np.array(elevation(d), np.float32), key_limit(d)
        self._weights, ranks = np.empty((points, d + 1), np.float32), np.empty((points, d + 1), np.int8)
        keys = np.empty(points, np.int64)
        if _place_points(features.float().contiguous().numpy(), factors, key_bits(d), limit, keys, ranks, self._weights):
            raise too_far(limit)
        self._simplex_of_point, first = _number(keys)
        self._corners, vertex_keys, table = _find_corners(keys, ranks, first, key_bits(d))
        self._neighbours = _find_neighbours(vertex_keys, *table, d + 1, key_bits(d))
        self.num_vertices = len(vertex_keys)

    @property
    def vertex_ids(self) -> Tensor:
        """(d + 1, N) long, the corners of every point."""
        return torch.from_numpy(self._corners[self._simplex_of_point].T.astype(np.int64))

    @property
    def weights(self) -> Tensor:
        """(d + 1, N) float32, barycentric coordinates of the points, times the factors of `scale_symmetrically`."""
        return torch.from_numpy(self._weights.T)

    @torch.no_grad()
    def filter(self, values: Tensor) -> Tensor:
        """(C, N) float32 values -> (C, N) filtered values; every channel by itself, on as many cores as torch has threads.

        Raises:
            ValueError: values are not one for each point and channel.
        """
        if values.dim() != 2 or values.shape[1] != len(self._weights):
            raise ValueError(f"values {tuple(values.shape)}: need (C, N) for {len(self._weights)} points")
        values = values.float().contiguous()
        result = torch.empty_like(values)

        def filter_one(channel) -> None:
            _filter(channel[0], self._weights, self._simplex_of_point, self._corners, self._neighbours, channel[1])

        one_core_each(filter_one, list(zip(values.numpy(), result.numpy())), values.device)
        return result

    @torch.no_grad()
    def scale_symmetrically(self, factors: Tensor) -> None:
        """From now on the filter is ``diag(factors) K diag(factors)``, at no cost; factors (N,)."""
        self._weights = self._weights * factors.float().numpy()[:, None]


@_compiled
def _place_points(features, factors, bits, limit, keys, ranks, weights):
    """Fills for all N points the address of their simplex (N,), ranks (N, d + 1) and weights (N, d + 1); whether any is too far."""
    corners, points = len(features) + 1, features.shape[1]
    shape = (corners, BLOCK)
    elevated, corner, spare = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32)
    rank = np.empty(shape, np.int32)
    outside = False
    for start in range(0, points, BLOCK):
        count = min(BLOCK, points - start)
        _elevate(features[:, start : start + count], factors, elevated, spare[0])
        _enclose(elevated, corner, rank, spare, count)
        outside |= _addresses(corner, rank, bits, limit, keys[start : start + count])
        _sort_above(elevated, corner, spare, count)
        for p in range(count):
            weights[start + p, 0] = spare[0, p] - spare[corners - 1, p] + np.float32(1)
            ranks[start + p, 0] = rank[0, p]
        for j in range(1, corners):
            for p in range(count):
                weights[start + p, j] = spare[j, p] - spare[j - 1, p]
                ranks[start + p, j] = rank[j, p]
    return outside


@_compiled
def _elevate(features, factors, elevated, total):
    """As `permutohedral._elevate`, for one block."""
    count = features.shape[1]
    for p in range(count):
        total[p] = 0
    for j in range(len(features), 0, -1):
        for p in range(count):
            scaled = features[j - 1, p] * factors[j - 1]
            elevated[j, p] = total[p] - np.float32(j) * scaled
            total[p] += scaled
    for p in range(count):
        elevated[0, p] = total[p]


@_compiled
def _enclose(elevated, corner, rank, above, count):
    """As `permutohedral._enclosing_simplex`, for one block; corners in units of d + 1."""
    corners = len(elevated)
    for p in range(count):
        rank[0, p] = 0
    for j in range(corners):
        for p in range(count):
            corner[j, p] = np.rint(elevated[j, p] * np.float32(1 / corners))
            above[j, p] = elevated[j, p] - corner[j, p] * np.float32(corners)
            rank[0, p] += np.int32(corner[j, p])
    for j in range(corners - 1, -1, -1):
        for p in range(count):
            rank[j, p] = rank[0, p] + j  # how far the corners lie off the plane, and the order of equal coordinates
    for i in range(corners):
        for j in range(i + 1, corners):
            for p in range(count):
                lower = np.int32(above[i, p] < above[j, p])
                rank[i, p] += lower
                rank[j, p] -= lower
    for j in range(corners):
        for p in range(count):
            turn = np.int32(rank[j, p] < 0) - np.int32(rank[j, p] >= corners)
            corner[j, p] += np.float32(turn)
            rank[j, p] += corners * turn


@_compiled
def _addresses(corner, rank, bits, limit, keys):
    """Fills the keys of the block's simplices, ``corner - rank`` as in `permutohedral._simplex_corners`; whether any has none."""
    corners, outside = len(corner), False
    for p in range(len(keys)):
        keys[p] = 0
    for j in range(corners - 1):
        for p in range(len(keys)):
            cells = corner[j, p] * np.float32(corners) - np.float32(rank[j, p])
            outside |= not abs(cells) < limit
            keys[p] += np.int64(cells) << (bits * j)
    return outside


@_compiled
def _sort_above(elevated, corner, above, count):
    """Fills, in units of d + 1, how far the block's points lie above their corner, ascending for every point."""
    corners = len(elevated)
    for j in range(corners):
        for p in range(count):
            above[j, p] = (elevated[j, p] - corner[j, p] * np.float32(corners)) * np.float32(1 / corners)
    for turn in range(corners):
        for i in range(turn % 2, corners - 1, 2):
            for p in range(count):
                one, other = above[i, p], above[i + 1, p]
                above[i, p], above[i + 1, p] = min(one, other), max(one, other)


@_compiled
def _slot(key, table, shift):
    """The slot of a key in an open table of 2**(64 - shift) slots, or the free one that it would take: its hash's, or the next after."""
    place = np.int64((np.uint64(key) * np.uint64(GOLDEN_RATIO)) >> np.uint64(shift))
    while table[place] != key and table[place] != NO_KEY:
        place = (place + 1) & (len(table) - 1)
    return place


@_compiled
def _number(keys):
    """Numbers equal keys alike, in the order of their first point: (N,) uint32 numbers, and (S,) int32 the first point of each."""
    bits = 4
    while 2**bits < 2 * len(keys):
        bits += 1
    table, numbers = np.full(2**bits, NO_KEY, np.int64), np.empty(2**bits, np.uint32)
    number_of_point, first = np.empty(len(keys), np.uint32), np.empty(len(keys), np.int32)
    count, last, number = 0, NO_KEY, np.uint32(0)
    for i in range(len(keys)):
        if keys[i] != last:  # neighbours in a photo mostly share their simplex
            last = keys[i]
            place = _slot(last, table, 64 - bits)
            if table[place] == NO_KEY:
                table[place], numbers[place], first[count] = last, count, i
                count += 1
            number = numbers[place]
        number_of_point[i] = number
    return number_of_point, first[:count].copy()


@_compiled
def _find_corners(keys, ranks, first, bits):
    """Numbers (S, d + 1) uint32 of the corners of all simplices, the (M,) keys of the corners, and the table of both: keys, numbers, shift.

    Unsigned numbers: at signed ones numba looks for Python's negative positions.
    """
    corners = ranks.shape[1]
    strides, all_strides = _key_strides(corners, bits)
    shift = 64 - FIRST_TABLE_BITS
    table, numbers = np.full(2**FIRST_TABLE_BITS, NO_KEY, np.int64), np.empty(2**FIRST_TABLE_BITS, np.uint32)
    found, vertex_keys, count = np.empty((len(first), corners), np.uint32), np.empty(len(table), np.int64), 0
    jump = np.empty(corners, np.int64)  # by rank: what one step along its coordinate adds to a key
    for simplex in range(len(first)):
        key = keys[first[simplex]]
        for j in range(corners):
            rank = ranks[first[simplex], j]
            key += rank * strides[j]
            jump[rank] = strides[j]
        for colour in range(corners):
            if colour:
                key += all_strides - corners * jump[corners - colour]
            place = _slot(key, table, shift)
            if table[place] == NO_KEY:
                table[place], numbers[place], vertex_keys[count] = key, count, key
                count += 1
            found[simplex, colour] = numbers[place]
        if 4 * (count + corners) > len(table):
            shift -= 1
            table, numbers, vertex_keys = _larger_table(vertex_keys[:count], shift)
    return found, vertex_keys[:count].copy(), (table, numbers, shift)


@_compiled
def _larger_table(vertex_keys, shift):
    """Table and numbers of 2**(64 - shift) slots that hold the keys, and the keys in a row with room for as many."""
    size = 2 ** (64 - shift)
    table, numbers, longer = np.full(size, NO_KEY, np.int64), np.empty(size, np.uint32), np.empty(size, np.int64)
    for v in range(len(vertex_keys)):
        longer[v] = vertex_keys[v]
        place = _slot(vertex_keys[v], table, shift)
        table[place], numbers[place] = vertex_keys[v], v
    return table, numbers, longer


@_compiled
def _find_neighbours(vertex_keys, table, numbers, shift, corners, bits):
    """(d + 1, 2, M) numbers of the two neighbours of every corner along each axis; M stands for "none"."""
    strides, all_strides = _key_strides(corners, bits)
    count = len(vertex_keys)
    neighbours = np.full((corners, 2, count), count, np.uint32)
    for axis in range(corners):
        step = corners * strides[axis] - all_strides
        for v in range(count):
            key = vertex_keys[v] + step
            place = _slot(key, table, shift)
            if table[place] == key:
                neighbours[axis, 1, v] = numbers[place]
                neighbours[axis, 0, numbers[place]] = v
    return neighbours


@_compiled
def _key_strides(corners, bits):
    """As `permutohedral._strides`, and their sum."""
    strides, total = np.zeros(corners, np.int64), np.int64(0)
    for j in range(corners - 1):
        strides[j] = np.int64(1) << (bits * j)
        total += strides[j]
    return strides, total


@_compiled
def _filter(values, weights, simplex_of_point, corners_of_simplex, neighbours, result):
    """Splat, blur and slice of one channel (N,)."""
    corners, count = neighbours.shape[0], neighbours.shape[2]
    cells, blurred = np.zeros(count + 1, np.float32), np.zeros(count + 1, np.float32)  # the last one stays 0: no neighbour
    for i in range(len(values)):
        simplex, value = simplex_of_point[i], values[i]
        for c in range(corners):
            cells[corners_of_simplex[simplex, c]] += weights[i, c] * value
    for axis in range(corners):
        for v in range(count):
            blurred[v] = cells[v] + np.float32(0.5) * (cells[neighbours[axis, 0, v]] + cells[neighbours[axis, 1, v]])
        cells, blurred = blurred, cells
    factor = np.float32(1 / (1 + 2.0 ** (1 - corners)))
    for i in range(len(values)):
        simplex, total = simplex_of_point[i], np.float32(0)
        for c in range(corners):
            total += weights[i, c] * cells[corners_of_simplex[simplex, c]]
        result[i] = total * factor
