"""Deformable attention: the gathered form against `grid_sample` and against a loop, values and gradients; start values."""

import math

import pytest
import torch

from ofaseg.models.layers.deformable_attention import DeformableAttention, sample, sample_by_gather, sample_by_grid

SHAPES = ((2, 3), (4, 5), (1, 7))
HEADS, POINTS, WIDTH = 2, 3, 5


@pytest.fixture
def inputs():
    total = sum(height * width for height, width in SHAPES)
    value = torch.randn(2, total, HEADS, WIDTH)
    reference = torch.rand(6, 2)
    offsets = 3 * torch.randn(2, 6, HEADS, len(SHAPES), POINTS, 2)  # some far outside
    weights = torch.rand(2, 6, HEADS, len(SHAPES), POINTS)
    return [tensor.double().requires_grad_() for tensor in (value, reference, offsets, weights)]


def naive(value, reference, offsets, weights):
    """One point at a time, from the definition of bilinear sampling."""
    result = torch.zeros(2, 6, HEADS, WIDTH, dtype=value.dtype)
    for b in range(2):
        for n in range(6):
            for h in range(HEADS):
                start = 0
                for level, (height, width) in enumerate(SHAPES):
                    for p in range(POINTS):
                        x = float(reference[n, 0]) * width - 0.5 + float(offsets[b, n, h, level, p, 0])
                        y = float(reference[n, 1]) * height - 0.5 + float(offsets[b, n, h, level, p, 1])
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - abs(y - row)) * (1 - abs(x - column)) * float(weights[b, n, h, level, p])
                                    result[b, n, h] += share * value[b, start + row * width + column, h]
                    start += height * width
    return result.flatten(2)


@pytest.mark.parametrize("form", [sample_by_gather, sample_by_grid, sample])
@torch.no_grad()
def test_against_a_loop(inputs, form):
    value, reference, offsets, weights = inputs
    torch.testing.assert_close(form(value, SHAPES, reference, offsets, weights), naive(*inputs))


def test_gradients_of_both_forms(inputs):
    value, reference, offsets, weights = inputs
    upstream = torch.randn(2, 6, HEADS * WIDTH, dtype=torch.double)
    both = [
        torch.autograd.grad(form(value, SHAPES, reference, offsets, weights), inputs, upstream)
        for form in (sample_by_gather, sample_by_grid)
    ]
    for name, gathered, sampled in zip(("value", "reference", "offsets", "weights"), *both):
        assert sampled.abs().max() > 0, name
        torch.testing.assert_close(gathered, sampled, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(inputs, dtype):
    value, reference, offsets, weights = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    found = sample_by_gather(value, SHAPES, reference, offsets, weights)
    expected = naive(*(tensor.detach().double() for tensor in (value, reference, offsets, weights)))
    torch.testing.assert_close(found, expected.to(dtype), rtol=1e-2, atol=1e-2)
    found.sum().backward()
    assert value.grad.dtype == dtype and value.grad.abs().max() > 0


def test_points_outside_count_as_zero():
    value = torch.ones(1, 6, 1, 2)
    offsets = torch.full((1, 1, 1, 1, 1, 2), 50.0)
    for form in (sample_by_gather, sample_by_grid):
        assert not form(value, ((2, 3),), torch.tensor([[0.5, 0.5]]), offsets, torch.ones(1, 1, 1, 1, 1)).any()


def test_start_values():
    """Every head looks in its own direction, each point one step further, and no place is preferred."""
    layer = DeformableAttention(16, 4, 2, 3)
    bias = layer.sampling_offsets.bias.view(4, 2, 3, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        torch.testing.assert_close(bias[:, 1, point], (point + 1) * expected)
    assert not layer.sampling_offsets.weight.any() and not layer.attention_weights.weight.any()


@torch.no_grad()
def test_photos_of_a_batch_do_not_mix():
    layer = DeformableAttention(16, 4, 3, 2)
    torch.nn.init.normal_(layer.sampling_offsets.weight)
    total = sum(height * width for height, width in SHAPES)
    x, reference = torch.randn(2, total, 16), torch.rand(total, 2)
    both = layer(x, x, reference, SHAPES)
    torch.testing.assert_close(layer(x[1:], x[1:], reference, SHAPES), both[1:], atol=1e-6, rtol=1e-5)
