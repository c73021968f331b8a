"""Cosines of upsampled features and class vectors, without ever upsampling the features.

With u the bilinear upsampling, every pixel's vector is u(F) = sum_k w_k F_k over four neighbouring features. Then

    cos(u(F), c) = u(F . c) / (|u(F)| |c|),   |u(F)|^2 = sum_kl w_k w_l F_k . F_l,

so that a map per class and four maps of products between neighbours say all that the (B, C, H, W) features would.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TINY = 1e-24
"""Least squared length: a feature of zeros has cosine 0."""


def cosine_maps(features: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """As `upsampled_cosines`, with the features upsampled: what the published code computes, for comparison."""
    with torch.autocast(features.device.type, enabled=False):
        wide = F.interpolate(features.float(), size=size, mode="bilinear", align_corners=False)
        wide = wide * wide.square().sum(1, keepdim=True).clamp_min(TINY).rsqrt()
        return torch.einsum("bkc,bchw->bkhw", _unit(classes), wide)


def upsampled_cosines(features: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cosines of bilinearly resized features (align_corners False, no antialias) and class vectors, in float32.

    Args:
        features: (B, C, h, w), any float type.
        classes: (B, K, C).
        size: (H, W) of the result, finer or coarser than (h, w).

    Returns: (B, K, H, W) float32 in -1..1.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        (down, down_squared, down_mixed), (across, across_squared, across_mixed) = (
            _tap_weights(to, given, features.device) for to, given in zip(size, features.shape[2:])
        )
        products = (_unit(classes) @ features.flatten(2)).unflatten(2, features.shape[2:])  # (B, K, h, w)
        norm, right, below, diagonal = _NeighbourProducts.apply(features)
        squares = (down_squared @ norm + down_mixed @ below) @ across_squared.T
        squares = squares + (down_squared @ right + down_mixed @ diagonal) @ across_mixed.T
        return down @ products @ across.T * squares.clamp_min(TINY).rsqrt().unsqueeze(1)


def _unit(classes: Tensor) -> Tensor:
    classes = classes.float()
    return classes * classes.square().sum(-1, keepdim=True).clamp_min(TINY).rsqrt()


def _tap_weights(size: int, source: int, device) -> tuple[Tensor, Tensor, Tensor]:
    """Of one axis, each (size, source): the bilinear weights; their squares; twice the product of both, where the first tap is."""
    place = ((torch.arange(size, device=device) + 0.5) * (source / size) - 0.5).clamp_min(0)
    first = place.long().unsqueeze(1)
    second = (first + 1).clamp_max(source - 1)
    far = place.unsqueeze(1) - first
    near, none = 1 - far, torch.zeros(size, source, device=device)
    weights = none.scatter_add(1, first, near).scatter_add(1, second, far)
    squared = none.scatter_add(1, first, near.square()).scatter_add(1, second, far.square())
    return weights, squared, none.scatter(1, first, 2 * near * far)


class _NeighbourProducts(torch.autograd.Function):
    """Of each feature (B, C, h, w), summed over channels, each (B, h, w): its square; its product with the right neighbour and with
    the one below; half the sum of both diagonal products of the 2x2 square that it begins. The last row and column stand again
    beyond the border.

    A function of its own for its gradient, which torch would put together from a zero-padded copy per shifted view.
    """

    @staticmethod
    def forward(ctx, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(features)
        norm = _dot(features, features)
        right = torch.cat([_dot(features[..., :-1], features[..., 1:]), norm[..., -1:]], 2)
        below = torch.cat([_dot(features[:, :, :-1], features[:, :, 1:]), norm[:, -1:]], 1)
        diagonals = _dot(features[:, :, :-1, :-1], features[:, :, 1:, 1:]) + _dot(features[:, :, :-1, 1:], features[:, :, 1:, :-1])
        diagonals = torch.cat([0.5 * diagonals, below[:, :-1, -1:]], 2)
        return norm, right, below, torch.cat([diagonals, right[:, -1:]], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, norm: Tensor, right: Tensor, below: Tensor, diagonal: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        # what stands again beyond the border is a product that a cell inside has, too
        right, below, norm = right.clone(), below.clone(), norm.clone()
        right[:, -1] += diagonal[:, -1]
        below[:, :-1, -1] += diagonal[:, :-1, -1]
        norm[..., -1] += right[..., -1]
        norm[:, -1] += below[:, -1]
        right, below = right[..., :-1].unsqueeze(1), below[:, :-1].unsqueeze(1)
        half = 0.5 * diagonal[:, :-1, :-1].unsqueeze(1)
        gradient = features * (2 * norm).unsqueeze(1)
        gradient[..., :-1].addcmul_(features[..., 1:], right)
        gradient[..., 1:].addcmul_(features[..., :-1], right)
        gradient[:, :, :-1].addcmul_(features[:, :, 1:], below)
        gradient[:, :, 1:].addcmul_(features[:, :, :-1], below)
        gradient[:, :, :-1, :-1].addcmul_(features[:, :, 1:, 1:], half)
        gradient[:, :, 1:, 1:].addcmul_(features[:, :, :-1, :-1], half)
        gradient[:, :, :-1, 1:].addcmul_(features[:, :, 1:, :-1], half)
        gradient[:, :, 1:, :-1].addcmul_(features[:, :, :-1, 1:], half)
        return gradient


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """(B, h, w) products over channels."""
    return (one * other).sum(1)
