"""Masks at points between pixels, against `grid_sample`."""

import torch
import torch.nn.functional as F

from ofaseg.utils.points import bilinear_points
from tests.mask_batches import make_targets


def test_points_between_pixels():
    masks = make_targets().masks
    points = torch.rand(len(masks), 40, 2) * 1.2 - 0.1
    expected = F.grid_sample(masks[:, None].float(), 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(bilinear_points(masks, points), expected, atol=1e-5, rtol=0)
