"""Interaction of pixels and texts against the published order of operations, written out; gradients, chunks, batches."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.models.layers import text_interaction
from ofaseg.models.layers.text_interaction import TextInteraction


def written_out(module: TextInteraction, maps, text):
    """Projections first, one head after the other; texts are normed once more for every map."""
    results, heads = [], module.heads
    for feature_map in maps:
        batch, dim, height, width = feature_map.shape
        pixels = module.pixel_norm(feature_map.flatten(2).transpose(1, 2))
        text = module.text_norm(text)
        queries = module.q_proj(pixels) * module.scale
        keys, values = module.k_proj(text), module.v_proj(text)
        found = []
        for q, k, v in zip(queries.chunk(heads, -1), keys.chunk(heads, -1), values.chunk(heads, -1)):
            found.append((q @ k.T).softmax(-1) @ v)
        mixed = pixels + module.gamma * module.out_proj(torch.cat(found, -1))
        results.append(mixed.transpose(1, 2).view(batch, dim, height, width))
    return results


@pytest.fixture
def module():
    module = TextInteraction(12, 10, 24, 3, dropout=0.0).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


@pytest.fixture
def maps():
    return [torch.randn(2, 12, height, width, dtype=torch.double) for height, width in ((2, 3), (4, 6), (3, 3))]


def test_values_and_gradients(module, maps):
    text = torch.randn(5, 10, dtype=torch.double, requires_grad=True)
    ours, expected = module(maps, text), written_out(module, maps, text)
    for one, other in zip(ours, expected):
        torch.testing.assert_close(one, other)
    upstream = [torch.randn_like(x) for x in ours]
    inputs = [text, *module.parameters()]
    pairs = zip(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(expected, inputs, upstream))
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6)


@torch.no_grad()
def test_the_order_of_maps_matters(module, maps):
    text = torch.randn(5, 10, dtype=torch.double)
    assert not torch.allclose(module(maps, text)[0], module(maps[::-1], text)[-1])


@torch.no_grad()
def test_chunks_and_batches(module, maps, monkeypatch):
    text = torch.randn(5, 10, dtype=torch.double)
    whole = module(maps, text)
    monkeypatch.setattr(text_interaction, "CHUNK_ELEMENTS", 60)  # four pixels
    for one, other in zip(module(maps, text), whole):
        torch.testing.assert_close(one, other)
    for one, other in zip(module([x[1:] for x in maps], text), whole):
        torch.testing.assert_close(one, other[1:])


def test_dropout_is_off_in_evaluation(maps):
    module = TextInteraction(12, 10, 24, 3, dropout=0.5).double()
    text = torch.randn(5, 10, dtype=torch.double)
    assert not torch.equal(module(maps, text)[0], module(maps, text)[0])
    module.eval()
    assert torch.equal(module(maps, text)[0], module(maps, text)[0])
    assert F.mse_loss(module(maps, text)[0], maps[0]) > 0
