"""Masks read at points between their pixels."""

from torch import Tensor


def bilinear_points(masks: Tensor, points: Tensor) -> Tensor:
    """Masks (N, H, W) of any type at points (N, P, 2), x and y in 0..1 -> (N, P) float32.

    As `F.grid_sample(..., align_corners=False)` with zeros outside, without a float copy of the masks.
    """
    height, width = masks.shape[1:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    flat, result = masks.flatten(1), None
    for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            value = flat.gather(1, place).float() * (share_x * share_y * inside)
            result = value if result is None else result + value
    return result
