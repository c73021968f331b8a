"""PAMR, pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020, section 4.3): masks drift along colour likeness.

Every pixel takes, again and again, the mean of its neighbours' mask values, weighted by how alike their colours are:

    k(i, j) = -|x_i - x_j| / (s * sigma_i),   a_ij = softmax over j of the channels' mean of k,   m_i <- sum_j a_ij m_j

with the 8 neighbours j at every dilation, and sigma_i the standard deviation of the channel around the pixel.
"""

from typing import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
"""Distances of the neighbours in pixels (the released configuration)."""

DEVIATION_SCALE = 0.1
"""s: colours count as different from a tenth of the local standard deviation on."""

OFFSETS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column)


@torch.no_grad()
def pamr(image: Tensor, masks: Tensor, iterations: int = 10, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Refined masks.

    Args:
        image: (B, 3, H, W); its scale and offset per channel do not matter, for differences are divided by their deviation.
        masks: (B, K, H, W) values of any kind, in 0..1 as a rule; every channel is refined by itself.
        iterations: how often the masks are averaged.
        dilations: distances of the neighbours in pixels; beyond the border the border's pixels repeat.

    Returns:
        (B, K, H, W) float32; every value lies between the least and the largest of its channel.

    Raises:
        ValueError: image and masks do not belong together, or there is no dilation of at least 1.
    """
    if image.dim() != 4 or masks.dim() != 4 or image.shape[0] != masks.shape[0] or image.shape[2:] != masks.shape[2:]:
        raise ValueError(f"image {tuple(image.shape)} and masks {tuple(masks.shape)}: need (B, C, H, W) and (B, K, H, W)")
    if not dilations or min(dilations) < 1:
        raise ValueError(f"dilations {tuple(dilations)}: need at least one, each of at least 1 pixel")
    weights = affinities(image, dilations)
    state = masks.float()
    for _ in range(iterations):
        total = torch.zeros_like(state)
        for index, neighbour in enumerate(_neighbours(state, dilations)):
            total.addcmul_(neighbour, weights[:, index, None])
        state = total
    return state


def affinities(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """(B, 8 * len(dilations), H, W) weights a of every pixel's neighbours; they sum to 1 per pixel.

    Neighbours go dilation by dilation, each row by row. The deviation is the unbiased one of the 3 x 3 pixels of every
    dilation, the pixel itself counted with each.
    """
    image = image.float()
    samples = 9 * len(dilations)
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for neighbour in _neighbours(image, dilations):
        difference = neighbour - image  # around the pixel's own value: no cancellation in the squares
        total += difference
        squares.addcmul_(difference, difference)
    deviation = ((squares - total.square() / samples).clamp_(min=0) / (samples - 1)).sqrt_()
    scale = 1 / (DEVIATION_SCALE * deviation + 1e-8)
    likeness = [-((neighbour - image).abs_() * scale).mean(1) for neighbour in _neighbours(image, dilations)]
    return torch.stack(likeness, 1).softmax(1)


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The (B, C, H, W) values of every neighbour, as views of one padded copy."""
    height, width = maps.shape[2:]
    reach = max(dilations)
    padded = F.pad(maps, (reach,) * 4, mode="replicate")
    for dilation in dilations:
        for row, column in OFFSETS:
            top, left = reach + row * dilation, reach + column * dilation
            yield padded[:, :, top : top + height, left : left + width]
