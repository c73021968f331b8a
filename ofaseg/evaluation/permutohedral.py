"""Gaussian filtering of points in a few dimensions on the permutohedral lattice (Adams, Baek & Davis 2010), in plain torch.

Every point lies in one simplex of the lattice. Its value is shared out to the d + 1 corners (splat), the corners are mixed
along the d + 1 axes with weights 1/2, 1, 1/2 (blur), and the point takes the mean of its corners back (slice). Corners are
found by 64-bit keys in a table made of scatter and gather alone: nothing is sorted and no loop runs over points.
"""

import math

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**21
"""Values of all channels filtered at once (8 MB in float32): enough to fill a GPU, few enough to stay near a CPU's cache."""

NO_KEY = -(2**63)
"""In a slot of a table that holds no key."""

GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""2**64 / 1.618...: the multiplier of the first round of hashing; later rounds take theirs from a congruential sequence."""


class Lattice:
    """The lattice of one set of points; built once, it filters any number of channels.

    Args:
        features: (d, N) positions in units of the kernel's standard deviation: the filter approximates
            ``sum_j exp(-|f_i - f_j|^2 / 2) v_j``, up to a factor that is the same for all points.

    Attributes:
        num_vertices: M, the corners of all simplices that hold a point.
        vertex_ids: (d + 1, N) long, the corners of every point.
        weights: (d + 1, N) float32, its barycentric coordinates, times the factors of `scale_symmetrically`.

    Raises:
        ValueError: positions too far apart for a key of 64 bits, or not finite.
    """

    interleaved = 16
    """Image parts whose pixels should take turns among the points. Neighbours share their corners, and a sum waits for the one
    before it (on a GPU: for the other threads of its warp) when both go to the same place."""

    @torch.no_grad()
    def __init__(self, features: Tensor):
        check_features(features)
        elevated = _elevate(features.float())
        corner, rank = _enclosing_simplex(elevated)
        self.weights = _barycentric(elevated, corner)
        self._find_vertices(*_simplex_corners(corner, rank))

    def _find_vertices(self, simplex_corner_keys: Tensor, simplex_of_point: Tensor) -> None:
        """Numbers the corners and finds the two neighbours of each along every axis; number M stands for "none"."""
        corners, device = len(simplex_corner_keys), simplex_corner_keys.device
        table = KeyTable(simplex_corner_keys.flatten(), repeats=4)
        self.num_vertices = count = len(table.unique)
        self.vertex_ids = simplex_of_point.new_empty(corners, len(simplex_of_point))
        for ids, number_of_simplex in zip(self.vertex_ids, table.number.view(corners, -1)):
            torch.index_select(number_of_simplex, 0, simplex_of_point, out=ids)
        strides = _strides(corners - 1, device)
        steps = corners * strides - strides.sum()
        self._neighbours = table.number.new_full((corners, 2, count + 1), count)
        before, after = self._neighbours.unbind(1)
        after[:, :count] = table.find((table.unique + steps[:, None]).flatten()).view(corners, count)
        before.scatter_(1, after, torch.arange(count + 1, device=device).expand(corners, -1))
        before[:, count] = count  # those without a neighbour all wrote here

    @torch.no_grad()
    def filter(self, values: Tensor) -> Tensor:
        """(C, N) float32 values -> (C, N) filtered values; every channel by itself."""
        step = max(1, CHUNK_ELEMENTS // values.shape[1])
        parts = [self._filter(chunk) for chunk in values.split(step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _filter(self, values: Tensor) -> Tensor:
        channels, part = len(values), torch.empty_like(values)
        cells = values.new_zeros(channels, self.num_vertices + 1)  # the last one stays 0: the neighbour that does not exist
        for ids, weight in zip(self.vertex_ids, self.weights):
            cells.scatter_add_(1, ids.expand(channels, -1), torch.mul(values, weight, out=part))
        side = torch.empty_like(cells)
        for before, after in self._neighbours:
            other = torch.gather(cells, 1, after.expand(channels, -1))
            torch.gather(cells, 1, before.expand(channels, -1), out=side).add_(other)
            cells.add_(side, alpha=0.5)
        cells /= 1 + 2.0 ** (1 - len(self.weights))
        result = torch.zeros_like(values)
        for ids, weight in zip(self.vertex_ids, self.weights):
            result.addcmul_(torch.gather(cells, 1, ids.expand(channels, -1), out=part), weight)
        return result

    @torch.no_grad()
    def scale_symmetrically(self, factors: Tensor) -> None:
        """From now on the filter is ``diag(factors) K diag(factors)``, at no cost; factors (N,)."""
        self.weights = self.weights * factors


def check_features(features: Tensor) -> None:
    """Raises ValueError unless there are (d, N) positions of at least one point in 1 to 10 dimensions."""
    if features.dim() != 2 or not features.shape[1] or not 1 <= len(features) <= 10:
        raise ValueError(f"features {tuple(features.shape)}: need (d, N) with at least one point, d from 1 to 10")


def elevation(d: int) -> list[float]:
    """(d,) factors of the coordinates, so that the blur has unit deviation (page 5 of the paper)."""
    return [math.sqrt(2 / 3) * (d + 1) / math.sqrt(j * (j + 1)) for j in range(1, d + 1)]


def key_bits(d: int) -> int:
    """Bits of a key for each of the first d coordinates."""
    return 63 // d


def key_limit(d: int) -> int:
    """Lattice cells from the origin within which all corners and their neighbours have keys, and float32 tells neighbours apart."""
    return min(2 ** (key_bits(d) - 1) - 2 * (d + 1), 2**20)


def too_far(limit: int) -> ValueError:
    """The error for points at `limit` or beyond."""
    return ValueError(f"points lie {limit} lattice cells or more from the origin: use finite features and larger standard deviations")


def _elevate(features: Tensor) -> Tensor:
    """(d, N) positions -> (d + 1, N) on the plane whose coordinates sum to 0, scaled so that the blur has unit deviation.

    Page 5 of the paper. The order of the sums is that of the original code, so that points fall into the same simplices.
    """
    d = len(features)
    elevated = features.new_empty(d + 1, features.shape[1])
    total = torch.zeros_like(features[0])
    for j, factor in zip(range(d, 0, -1), reversed(elevation(d))):
        scaled = features[j - 1] * factor
        torch.sub(total, scaled, alpha=j, out=elevated[j])
        total += scaled
    elevated[0] = total
    return elevated


def _enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor]:
    """The simplex of every point: its corner of colour 0, (d + 1, N) multiples of d + 1, and the ranks, (d + 1, N); float32.

    The rank of a coordinate counts those that are farther above the corner; it tells in which order the other corners follow.
    """
    corners = len(elevated)
    corner = (elevated * (1 / corners)).round_()
    off_plane = corner.sum(0)
    corner *= corners
    above = elevated - corner
    rank = torch.arange(corners, dtype=above.dtype, device=above.device)[:, None].repeat(1, above.shape[1])
    lower = torch.empty_like(above[0])
    for i in range(corners):
        for j in range(i + 1, corners):
            torch.lt(above[i], above[j], out=lower)  # into floats: several times faster than into booleans
            rank[i] += lower
            rank[j] -= lower
    rank += off_plane
    turn = torch.lt(rank, 0, out=above)
    turn -= torch.ge(rank, corners, out=torch.empty_like(rank))
    turn *= corners
    return corner.add_(turn), rank.add_(turn)


def _barycentric(elevated: Tensor, corner: Tensor) -> Tensor:
    """(d + 1, N) weights of the corners of colour 0..d; they sum to 1 for every point (page 10 of the paper)."""
    corners = len(elevated)
    above = list((elevated - corner).mul_(1 / corners).unbind(0))
    spare = torch.empty_like(above[0])
    for turn in range(corners):  # odd-even transposition: sorts a few long rows far faster than a sort along the short axis
        for i in range(turn % 2, corners - 1, 2):
            low, high = above[i : i + 2]
            above[i] = torch.minimum(low, high, out=spare)
            above[i + 1], spare = torch.maximum(low, high, out=high), low
    weights = torch.empty_like(elevated)
    torch.sub(above[0], above[-1], out=weights[0]).add_(1)
    for low, high, weight in zip(above, above[1:], weights[1:]):
        torch.sub(high, low, out=weight)
    return weights


def _strides(d: int, device) -> Tensor:
    """(d + 1,) what one step along each coordinate adds to a key; the last coordinate follows from the others."""
    return torch.tensor([2 ** (key_bits(d) * i) for i in range(d)] + [0], device=device)


def _simplex_corners(corner: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (d + 1, S) of the corners of all S simplices that hold a point, and the simplex of every point, (N,).

    ``corner - rank`` is a simplex's own address: corners are multiples of d + 1 and ranks are 0..d, so both can be read from it.
    """
    d, points = len(corner) - 1, corner.shape[1]
    strides = _strides(d, corner.device)
    address = corner[:d] - rank[:d]
    if not float(torch.stack(address.aminmax()).abs().max()) < key_limit(d):
        raise too_far(key_limit(d))
    key = torch.zeros(points, dtype=torch.long, device=corner.device)
    for part, shift in zip(address, range(0, 64, key_bits(d))):
        key += part.long() << shift
    table = KeyTable(key)
    any_point = torch.empty_like(table.unique).scatter_(0, table.number, torch.arange(points, device=key.device))
    rank = rank.to(torch.int8).gather(1, any_point.expand(d + 1, -1)).long()  # bytes: the random reads stay in the cache
    jump = torch.zeros_like(rank).scatter_(0, rank, strides[:, None].expand_as(rank))  # row r: the coordinate of rank r
    keys = [table.unique + (rank * strides[:, None]).sum(0)]
    for colour in range(1, d + 1):
        keys.append(keys[-1] + strides.sum() - (d + 1) * jump[d + 1 - colour])
    return torch.stack(keys), table.number


class KeyTable:
    """Which of (n,) long keys are equal, and which of them equals a query: a hash table in rounds.

    In a round every key without a place writes itself to the slot of its hash. One of those that meet there stays and all keys
    equal to it have their place; the others go on to the next round, with another hash.

    Args:
        keys: (n,) long.
        repeats: how often a key is expected to occur; it makes the table smaller.

    Attributes:
        unique: (m,) the keys without repetition, in no particular order.
        number: (n,) the place of every key in `unique`.
    """

    def __init__(self, keys: Tensor, repeats: int = 1):
        self._rounds, tables, start = [], [], 0
        places, pending, wanted, multiplier = None, None, keys, GOLDEN_RATIO
        while len(wanted):
            bits = max(4, math.ceil(math.log2(len(wanted) / repeats)))
            slot = _slots(wanted, multiplier, bits)
            table = keys.new_full((2**bits,), NO_KEY).scatter_(0, slot, wanted)
            lost = torch.nonzero(table.index_select(0, slot) != wanted).flatten()
            self._rounds.append((multiplier, bits, start))
            slot += start
            places = slot if places is None else places.scatter_(0, pending, slot)
            pending = lost if pending is None else pending.index_select(0, lost)
            wanted = wanted.index_select(0, lost)
            tables.append(table)
            start += len(table)
            multiplier = (multiplier * 6364136223846793005 + 1442695040888963407) % 2**64 | 1
        self._table = torch.cat(tables)
        occupied = torch.nonzero(self._table != NO_KEY).flatten()
        self.unique = self._table.index_select(0, occupied)
        everyone = torch.arange(len(occupied), device=keys.device)
        self._number_of_place = torch.full_like(self._table, len(occupied)).scatter_(0, occupied, everyone)
        self.number = self._number_of_place.index_select(0, places)

    def find(self, queries: Tensor) -> Tensor:
        """(q,) places in `unique` of the queries, or m for those that are no key."""
        found, pending, wanted = None, None, queries
        for multiplier, bits, start in self._rounds:
            place = _slots(wanted, multiplier, bits).add_(start)
            key = self._table.index_select(0, place)
            hit = key == wanted
            answer = torch.where(hit, self._number_of_place.index_select(0, place), len(self.unique))
            found = answer if found is None else found.scatter_(0, pending, answer)
            left = torch.nonzero(~hit & (key != NO_KEY)).flatten()  # an empty slot: this key never came by
            pending, wanted = left if pending is None else pending.index_select(0, left), wanted.index_select(0, left)
        return found


def _slots(keys: Tensor, multiplier: int, bits: int) -> Tensor:
    """Multiplicative hash of (n,) long keys to 0 .. 2**bits - 1."""
    signed = multiplier - 2**64 if multiplier >= 2**63 else multiplier
    return ((keys * signed) >> (64 - bits)).bitwise_and_(2**bits - 1)
