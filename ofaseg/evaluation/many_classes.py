"""The best class per pixel among thousands: first which classes can win in each cell of the patch grid, then only those are resized.

Between four neighbouring grid points a bilinear resize is a mixture of their scores. A class that is below one rival at all
four can win nowhere in that cell, so leaving it out changes nothing; of 10,000 names a few remain in each cell.
"""

from functools import reduce
from typing import Sequence

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**21
"""Score values looked at at once (8 MB in float32)."""
NEVER = torch.finfo(torch.float32).min
"""A score that wins nowhere, and of which a mixture with itself can be taken (of minus infinity it is nan)."""


def argmax_of_many(class_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The best class per pixel after a bilinear resize (align_corners False), for any number of classes.

    Beside `class_logits` it holds a few times CHUNK_ELEMENTS values, or those of one row of cells, whatever K, H and W are. Equal to
    resizing all scores but for pixels whose two best scores are equal up to rounding.

    Args:
        class_logits: (K, h, w) scores; quickest where the scores of a cell lie side by side, as a product with class vectors leaves
            them.
        size: (H, W).

    Returns:
        (H, W) long.
    """
    num_classes, rows, columns = class_logits.shape
    height, width = int(size[0]), int(size[1])
    result = torch.empty(height, width, dtype=torch.long, device=class_logits.device)
    row_cell, row_weight = source_cells(rows, height)
    cells, column_weight = source_cells(columns, width)
    row_weight, column_weight = row_weight.to(result.device), column_weight.to(result.device)
    left, right = slice(0, max(columns - 1, 1)), slice(min(1, columns - 1), columns)
    bands = [(int(cell), *_span(row_cell, cell)) for cell in row_cell.unique()]
    step = max(1, CHUNK_ELEMENTS // (num_classes * columns))
    for first in range(0, len(bands), step):
        part = bands[first : first + step]
        low, high = part[0][0], min(part[-1][0] + 2, rows)
        scores = class_logits[:, low:high].permute(1, 2, 0).contiguous().float()  # (points down, points across, K)
        for cell, start, stop in part:
            upper, lower = scores[cell - low], scores[min(cell + 1, rows - 1) - low]
            corners = (upper[left], upper[right], lower[left], lower[right])
            _fill_band(result[start:stop], corners, row_weight[start:stop], cells, column_weight)
    return result


def _span(row_cell: Tensor, cell: Tensor) -> tuple[int, int]:
    """First output row of a row of cells, and the one after its last."""
    inside = torch.nonzero(row_cell == cell)
    return int(inside[0]), int(inside[-1]) + 1


def source_cells(points: int, length: int) -> tuple[Tensor, Tensor]:
    """For each of `length` output positions its cell, (length,) long, and the weight 0..1 of the cell's second grid point.

    Cell i lies between the grid points i and i + 1 (of one point: there are no others).
    The positions of `torch.nn.functional.interpolate` with align_corners False.
    """
    position = ((torch.arange(length, dtype=torch.float32) + 0.5) * (points / length) - 0.5).clamp(0, points - 1)
    low = position.floor().clamp(max=max(points - 2, 0))
    return low.long(), position - low


def possible_winners(corners: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The classes that can be best somewhere in each cell.

    Args:
        corners: the scores (cells, K) at the four corners of the cells.

    Returns:
        cell and class id of every such pair, both (pairs,) long, cell by cell and the ids of a cell in increasing order.
    """
    below = reduce(torch.minimum, corners).amax(-1, keepdim=True)  # (cells, 1): some class is never below this in the cell
    hopeless = reduce(torch.maximum, corners) < below
    left = torch.nonzero(~hopeless.all(0)).flatten()  # most classes go for the whole row of cells, at a glance
    cell, name = torch.nonzero(~hopeless[:, left], as_tuple=True)
    name = left[name]
    scores = torch.stack([corner[cell, name] for corner in corners])  # (4, pairs)
    total = scores.sum(0)
    best = total.new_full((len(below),), NEVER).scatter_reduce_(0, cell, total, "amax")
    rival = cell.new_full((len(below),), -1).index_copy_(0, *_last_of_each(cell, total == best[cell]))[cell]  # (pairs,) place of a pair
    stays = (~(scores < scores[:, rival])).any(0) | (rival < 0)  # scores that are nan have no rival
    return cell[stays], name[stays]


def _last_of_each(cell: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Cells of the chosen pairs, each once, and the place of one chosen pair."""
    places = torch.nonzero(chosen).flatten()
    cells = cell[places]
    last = torch.ones_like(cells, dtype=torch.bool)
    last[:-1] = cells[1:] != cells[:-1]
    return cells[last], places[last]


def _fill_band(result: Tensor, corners: Sequence[Tensor], row_weight: Tensor, column_cell: Tensor, column_weight: Tensor) -> None:
    """Writes the best classes of one row of cells into its output rows, `result` (r, W) long.

    Args:
        corners: as in `possible_winners`; row_weight: (r,) weights of the lower corners.
        column_cell: (W,) on the CPU, the cell of each output column, ascending; column_weight: (W,) weights of the right corners.
    """
    pair_cell, pair_class = possible_winners(corners)
    counts = torch.bincount(pair_cell, minlength=len(corners[0]))
    place = torch.arange(len(pair_cell), device=pair_cell.device) - (counts.cumsum(0) - counts)[pair_cell]
    pair_scores = torch.stack([corner[pair_cell, pair_class] for corner in corners], 1)  # (pairs, 4)
    column_cell = column_cell.to(result.device)
    size = torch.frexp(counts.float()).exponent  # cells with about as many classes are filled together
    for bucket in size.unique().tolist():
        cells = torch.nonzero(size == bucket).flatten()
        most = 2**bucket - 1
        step = max(1, CHUNK_ELEMENTS // (most * len(row_weight) * (-(-result.shape[1] // len(counts)) + 1)))
        for some in cells.split(step):
            row_of = torch.full_like(counts, -1).index_copy_(0, some, torch.arange(len(some), device=some.device))
            mine = row_of[pair_cell] >= 0
            where = (row_of[pair_cell[mine]], place[mine])
            names = pair_class.new_zeros(len(some), most).index_put_(where, pair_class[mine])
            scores = corners[0].new_full((len(some), most, 4), NEVER).index_put_(where, pair_scores[mine])
            pixels = torch.nonzero(row_of[column_cell] >= 0).flatten()
            _fill_columns(result, pixels, names, scores, row_of[column_cell[pixels]], row_weight, column_weight[pixels])


def _fill_columns(result: Tensor, pixels: Tensor, names: Tensor, scores: Tensor, cell: Tensor, row_weight: Tensor, weight: Tensor) -> None:
    """Writes the columns `pixels` (n,) of `result` (r, W): the best of the classes `names` (cells, M) with corner `scores` (cells, M, 4).

    `cell` (n,) is the row of `names` of each column, `weight` (n,) how much of its right corners it is. Empty places have the score NEVER.
    """
    top, bottom = (scores[..., 0], scores[..., 1]), (scores[..., 2], scores[..., 3])
    down = row_weight[:, None, None]
    left, right = (torch.lerp(upper[None], lower[None], down) for upper, lower in zip(top, bottom))  # (r, cells, M)
    best = torch.lerp(left[:, cell], right[:, cell], weight[:, None]).argmax(-1)  # (r, n)
    result[:, pixels] = names[cell[None], best]
