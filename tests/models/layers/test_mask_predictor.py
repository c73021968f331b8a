"""The mask predictor against its published form: torch's own attention, masks at full resolution that are resized."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.models.layers.mask_predictor import Attention, MaskPredictor, _allowed
from ofaseg.models.layers.pixel_decoder import sine_positions

SIZES = ((2, 3), (4, 6), (8, 12))


@pytest.fixture
def predictor():
    predictor = MaskPredictor(16, 16, 6, queries=5, layers=4, heads=2, hidden=24, class_hidden=8)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return predictor


@pytest.fixture
def inputs():
    return [torch.randn(2, 16, *size) for size in SIZES], torch.randn(2, 16, 16, 24)


def torch_attention(ours: Attention, queries, keys, values, mask=None):
    theirs = torch.nn.MultiheadAttention(16, ours.heads, batch_first=True)
    theirs.load_state_dict(
        {"in_proj_weight": ours.in_proj_weight, "in_proj_bias": ours.in_proj_bias}
        | {f"out_proj.{name}": value for name, value in ours.out_proj.state_dict().items()}
    )
    return theirs(queries, keys, values, attn_mask=mask, need_weights=False)[0]


def written_out(predictor, maps, mask_features):
    """(embeddings, mask logits) of every prediction."""
    x = predictor.query_features.expand(len(mask_features), -1, -1)
    position, heads = predictor.query_positions, predictor.layers[0].cross_attention.heads

    def predict(x, size):
        state = predictor.norm(x)
        logits = torch.einsum("bqc,bchw->bqhw", predictor.mask_embed(state), mask_features)
        blocked = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).flatten(2).sigmoid() < 0.5
        blocked[blocked.all(-1)] = False
        return predictor.class_embed(state), logits, blocked.repeat_interleave(heads, 0)

    found = [predict(x, SIZES[0])]
    for n, layer in enumerate(predictor.layers):
        level = n % 3
        memory = maps[level].flatten(2).transpose(1, 2) + predictor.level_embedding[level]
        keys = memory + sine_positions(*SIZES[level], 16)
        cross, own = layer.cross_attention, layer.self_attention
        x = cross.norm(x + torch_attention(cross, x + position, keys, memory, found[-1][2]))
        x = own.norm(x + torch_attention(own, x + position, x + position, x))
        x = layer.norm(x + layer.contract(F.relu(layer.expand(x))))
        found.append(predict(x, SIZES[(n + 1) % 3]))
    return [f[:2] for f in found]


@torch.no_grad()
def test_against_the_published_form(predictor, inputs):
    maps, mask_features = inputs
    ours = predictor(maps, mask_features)
    expected = written_out(predictor, maps, mask_features)
    assert len(ours.mask_embeddings) == len(ours.embeddings) == len(expected) == 5
    for layer, (embeddings, logits) in enumerate(expected):
        torch.testing.assert_close(ours.embeddings[layer], embeddings, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(torch.einsum("bqc,bchw->bqhw", ours.mask_embeddings[layer], mask_features), logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_last_only(predictor, inputs):
    every, last = predictor(*inputs), predictor(*inputs, last_only=True)
    assert len(last.embeddings) == len(last.mask_embeddings) == 1
    assert torch.equal(last.embeddings[0], every.embeddings[-1]) and torch.equal(last.mask_embeddings[0], every.mask_embeddings[-1])


def test_what_a_mask_allows():
    """A pixel at probability 0.5 counts; a query without any pixel sees all of them."""
    features = torch.tensor([[[1.0, -1.0, 0.0, -2.0]]])
    allowed = _allowed(torch.tensor([[[1.0], [0.0], [-1.0]]]), features)
    assert allowed.tolist() == [[[[True, False, True, False], [True] * 4, [False, True, True, True]]]]
    assert _allowed(torch.tensor([[[1.0]]]), -torch.ones(1, 1, 4)).all()


def test_every_weight_has_a_gradient(predictor, inputs):
    found = predictor(*inputs)
    masks = sum((embedding @ inputs[1].flatten(2)).square().mean() for embedding in found.mask_embeddings)
    (found.embeddings.square().sum() + masks).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in predictor.parameters())


def test_positions():
    """Rows in the first half, columns in the second, the last of each at 2 * pi."""
    positions = sine_positions(3, 4, 8).view(3, 4, 8)
    assert torch.equal(positions[1, 0, :4], positions[1, 3, :4]) and torch.equal(positions[0, 2, 4:], positions[2, 2, 4:])
    row = torch.tensor(2 / 3 * 2 * torch.pi)
    torch.testing.assert_close(positions[1, 0, :2], torch.stack([row.sin(), row.cos()]), atol=1e-5, rtol=0)
    slow = row / 10000**0.5
    torch.testing.assert_close(positions[1, 0, 2:4], torch.stack([slow.sin(), slow.cos()]), atol=1e-5, rtol=0)
