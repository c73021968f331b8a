"""Cosines from few maps against upsampled features, values and gradients, at sizes finer and coarser than the features'."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.models.layers.upsampled_cosines import cosine_maps, upsampled_cosines

SIZES = [
    ((8, 12), (64, 64)),
    ((16, 16), (28, 28)),
    ((9, 7), (5, 6)),
    ((6, 5), (6, 5)),
    ((4, 6), (37, 50)),
    ((1, 1), (5, 4)),
    ((1, 5), (7, 3)),
]


def inputs(grid, classes=3, channels=16):
    generator = torch.Generator().manual_seed(sum(grid))
    features = torch.randn(2, channels, *grid, generator=generator)
    return features, torch.randn(2, classes, channels, generator=generator)


@pytest.mark.parametrize("grid, size", SIZES)
def test_as_upsampling_the_features(grid, size):
    features, classes = inputs(grid)
    wide = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    expected = F.cosine_similarity(wide[:, None], classes[..., None, None], dim=2)
    assert upsampled_cosines(features, classes, size).shape == (2, 3, *size)
    torch.testing.assert_close(upsampled_cosines(features, classes, size), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(cosine_maps(features, classes, size), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid, size", SIZES)
def test_gradients(grid, size):
    weight = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    gradients = []
    for head in (cosine_maps, upsampled_cosines):
        features, classes = (tensor.requires_grad_() for tensor in inputs(grid))
        gradients.append(torch.autograd.grad((head(features, classes, size) * weight).sum(), (features, classes)))
    for plain, ours in zip(*gradients):
        torch.testing.assert_close(ours, plain, atol=1e-5 * float(plain.abs().max()), rtol=0)


@pytest.mark.parametrize("head", [cosine_maps, upsampled_cosines])
def test_features_of_zeros_are_no_nan(head):
    features, classes = inputs((3, 4))
    features = features.zero_().requires_grad_()
    cosines = head(features, classes, (6, 8))
    cosines.sum().backward()
    assert torch.equal(cosines, torch.zeros_like(cosines)) and torch.isfinite(features.grad).all()


@pytest.mark.parametrize("head", [cosine_maps, upsampled_cosines])
def test_float32_under_autocast(head):
    features, classes = inputs((5, 4))
    expected = head(features.bfloat16(), classes.bfloat16(), (9, 8))
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features.bfloat16(), classes.bfloat16(), (9, 8))
    assert found.dtype == torch.float32 and torch.equal(found, expected)
