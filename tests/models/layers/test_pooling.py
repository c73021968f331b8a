"""LoDA pooling against plain loops, and what the gradient reaches."""

import numpy as np
import pytest
import torch

from ofaseg.models.layers.pooling import topk_mean, unit


def loop(tokens, k, mask=None):
    """Sorted values of every sample and channel, one by one, in float64."""
    result = np.zeros((tokens.shape[0], tokens.shape[2]))
    for b in range(tokens.shape[0]):
        for channel in range(tokens.shape[2]):
            values = [float(tokens[b, n, channel]) for n in range(tokens.shape[1]) if mask is None or mask[b, n]]
            result[b, channel] = np.mean(sorted(values, reverse=True)[:k])
    return result


@pytest.mark.parametrize("k", [1, 2, 5, 9, 12])
def test_equals_a_loop(k):
    tokens = torch.randn(3, 9, 4)
    np.testing.assert_allclose(topk_mean(tokens, k), loop(tokens, k), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_hidden_tokens_never_count_even_when_they_are_largest(k):
    tokens = torch.randn(4, 8, 5)
    mask = torch.arange(8)[None] < torch.tensor([[3], [8], [5], [4]])
    tokens[~mask] += 100
    found = topk_mean(tokens, k, mask.long())
    np.testing.assert_allclose(found, loop(tokens, k, mask), rtol=1e-5, atol=1e-6)
    assert (topk_mean(tokens, k) > found)[[0, 2, 3]].all()
    for b in range(4):  # nothing but the sample itself decides
        assert torch.equal(topk_mean(tokens[b : b + 1], k, mask[b : b + 1])[0], found[b])


def test_only_the_winners_get_a_gradient():
    tokens = torch.randn(2, 7, 6, requires_grad=True)
    topk_mean(tokens, 3).sum().backward()
    winners = torch.zeros_like(tokens).scatter_(1, tokens.topk(3, dim=1).indices, 1 / 3)
    torch.testing.assert_close(tokens.grad, winners)


def test_the_input_stays_and_half_precision_is_averaged_in_float32():
    tokens = torch.randn(1, 6, 3).bfloat16()
    before, mask = tokens.clone(), torch.tensor([[1, 1, 1, 1, 0, 0]])
    found = topk_mean(tokens, 2, mask)
    assert found.dtype == torch.float32 and torch.equal(tokens, before)
    np.testing.assert_allclose(found, loop(before.float(), 2, mask), rtol=1e-6)


def test_unit_adds_the_published_epsilon_to_the_length():
    vectors = torch.tensor([[3.0, 4.0], [3e-8, 4e-8], [0.0, 0.0]])
    expected = [[0.6, 0.8], [3e-8 / 6e-8, 4e-8 / 6e-8], [0.0, 0.0]]
    torch.testing.assert_close(unit(vectors), torch.tensor(expected))
