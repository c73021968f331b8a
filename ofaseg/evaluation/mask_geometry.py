"""Areas, boxes and nearest-neighbour resizes of masks and segment maps; plain tensors, without waiting for the device."""

import numpy as np
import torch
from torch import Tensor

_BYTE = 255
"""Masks that a byte can number, beside 0 for none."""


def nearest_source(size: int, target: int, device=None) -> Tensor:
    """(target,) long: the source pixel 0..size-1 of each pixel after a nearest-neighbour resize, as Pillow chooses it.

    It is the pixel under the centre, its position summed up step by step in double precision, as Pillow does.
    """
    steps = torch.full((target,), size / target, dtype=torch.float64)
    steps[0] = 0.5 * size / target
    return steps.cumsum(0).long().clamp_(max=size - 1).to(device)


def resize_nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) of (..., h, w) integers or booleans by nearest neighbour (Pillow's rule); `maps` itself where nothing changes."""
    height, width = int(size[0]), int(size[1])
    if tuple(maps.shape[-2:]) == (height, width):
        return maps
    rows = nearest_source(maps.shape[-2], height, maps.device)
    columns = nearest_source(maps.shape[-1], width, maps.device)
    return maps.index_select(-2, rows).index_select(-1, columns)


def count_true(masks: Tensor) -> Tensor:
    """(N,) long: True pixels of each of (N, H, W) bool masks."""
    if masks.device.type != "cpu":
        return masks.flatten(1).sum(1)
    # torch adds booleans one by one on the CPU; numpy's count is a hundred times as quick
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.long)


def any_true(masks: Tensor, dim: int) -> Tensor:
    """`masks.any(dim)` of (N, H, W) bool masks, a dozen times as quick on a CPU."""
    return masks.view(torch.uint8).amax(dim).bool()


def last_true(masks: Tensor, counted: Tensor) -> Tensor:
    """(H, W) long: the last of (N, H, W) bool masks that holds the pixel, -1 for none; only those that are `counted`, (N,) bool."""
    result = torch.full(masks.shape[1:], -1, dtype=torch.long, device=masks.device)
    for start in range(0, len(masks), _BYTE):
        part = masks[start : start + _BYTE]
        order = torch.arange(1, len(part) + 1, dtype=torch.uint8, device=masks.device) * counted[start : start + _BYTE]
        last = (part.view(torch.uint8) * order[:, None, None]).amax(0)  # numbers in bytes: a quarter of the memory to move
        result = torch.where(last > 0, last.long() + (start - 1), result)
    return result


def boxes_of_masks(masks: Tensor) -> Tensor:
    """(N, 4) float [x0, y0, x1, y1] in pixels around (N, H, W) bool masks, ends exclusive; zeros for empty masks."""
    if not masks.numel():
        return torch.zeros(len(masks), 4, device=masks.device)
    x0, x1 = _ends(any_true(masks, 1))
    y0, y1 = _ends(any_true(masks, 2))
    return torch.stack([x0, y0, x1, y1], 1).float()


def _ends(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 True of each row of (N, L) booleans; 0 and 0 where there is none."""
    length = occupied.shape[1]
    position = torch.arange(length, device=occupied.device)
    first = torch.where(occupied, position, length).amin(1)
    end = torch.where(occupied, position + 1, 0).amax(1)
    return torch.where(end > 0, first, 0), end


def segment_areas_and_boxes(segment_map: Tensor, largest_id: int) -> tuple[Tensor, Tensor]:
    """Pixels (L + 1,) long and boxes (L + 1, 4) long [x0, y0, x1, y1], ends exclusive, of the ids 0..L of an (H, W) segment map.

    Ids that the map does not hold have area 0 and a box of zeros. L is `largest_id`.
    """
    height, width = segment_map.shape
    ids = segment_map.reshape(-1).long()
    ones = torch.ones_like(ids)
    areas = torch.zeros(largest_id + 1, dtype=torch.long, device=ids.device).scatter_add_(0, ids, ones)
    ys = torch.arange(height, device=ids.device)[:, None].expand(height, width).reshape(-1)
    xs = torch.arange(width, device=ids.device).expand(height, width).reshape(-1)
    boxes = []
    for values, how, start in ((xs, "amin", width), (ys, "amin", height), (xs + 1, "amax", 0), (ys + 1, "amax", 0)):
        edge = torch.full((largest_id + 1,), start, dtype=torch.long, device=ids.device)
        boxes.append(edge.scatter_reduce_(0, ids, values, how))
    return areas, torch.stack(boxes, 1) * (areas > 0)[:, None]
