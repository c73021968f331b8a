"""The CPU attention against plain arithmetic: values and every gradient, on both backward paths."""

import pytest
import torch

from ofaseg.models.ofa import shared_bias_attention
from ofaseg.models.ofa.relative import AttentionBias, TextTerm
from ofaseg.models.ofa.shared_bias_attention import attention

B, H, T, S, D = 3, 2, 20, 26, 8
SCALE = 0.3


def inputs(causal=False, dtype=torch.float32):
    torch.manual_seed(0)
    keys = T if causal else S
    tensors = [torch.randn(B, length, H, D, dtype=dtype).transpose(1, 2) for length in (T, keys, keys)]
    return [tensor.requires_grad_() for tensor in tensors] + [torch.randn(H, T, keys, requires_grad=True)]


def plain(query, key, value, bias, causal, key_padding):
    scores = SCALE * query @ key.transpose(2, 3) + bias
    if causal:
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
    if key_padding is not None:
        scores = scores.masked_fill(key_padding[:, None, None], float("-inf"))
    return scores.softmax(-1) @ value


def padding_of(causal, padded):
    if not padded:
        return None
    hidden = torch.zeros(B, T if causal else S, dtype=torch.bool)
    hidden[1, 12:] = hidden[2, 5:] = True
    return hidden


@pytest.fixture(params=["rows", "samples", "few samples"])
def backward_path(request, monkeypatch):
    monkeypatch.setattr(shared_bias_attention, "ROWS", 7)
    monkeypatch.setattr(shared_bias_attention, "BATCHED_SCORES", 0 if request.param == "rows" else 2**16)
    monkeypatch.setattr(shared_bias_attention, "CHUNK_SCORES", 2 * H * T * S if request.param == "few samples" else 2**19)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_values_and_gradients(backward_path, causal, padded):
    given = inputs(causal)
    key_padding = padding_of(causal, padded)
    expected = plain(*given, causal, key_padding)
    ours = attention(*given[:3], AttentionBias(given[3], causal=causal), SCALE, key_padding)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(expected)
    for mine, theirs in zip(torch.autograd.grad((ours * weights).sum(), given), torch.autograd.grad((expected * weights).sum(), given)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_without_gradient_and_through_the_generic_kernel(monkeypatch):
    """The path of other devices and of the compiler gives the same."""
    given = inputs(causal=True)
    bias = AttentionBias(given[3], causal=True)
    with torch.no_grad():
        fast = attention(*given[:3], bias, SCALE, padding_of(True, True))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        generic = attention(*given[:3], bias, SCALE, padding_of(True, True))
    torch.testing.assert_close(fast, generic)


def test_relative_terms_get_their_gradient(backward_path):
    query, key, value, bias = inputs(causal=True)
    table = torch.randn(31, H, requires_grad=True)
    term = TextTerm(table, 0, T)
    ours = attention(query, key, value, AttentionBias(bias, (term,), causal=True), SCALE)
    dense = AttentionBias(bias, (TextTerm(table, 0, T),)).dense()
    expected = plain(query, key, value, dense, True, None)
    (mine,), (theirs,) = (torch.autograd.grad(x.square().sum(), table) for x in (ours, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16(backward_path):
    given = inputs(dtype=torch.bfloat16)
    ours = attention(*given[:3], AttentionBias(given[3]), SCALE)
    assert ours.dtype == torch.bfloat16
    expected = plain(*(x.float() for x in given[:3]), given[3], False, None)
    torch.testing.assert_close(ours.float(), expected, rtol=0.05, atol=0.02)
    mine = torch.autograd.grad(ours.float().square().sum(), given)
    theirs = torch.autograd.grad(expected.square().sum(), given)
    for a, b in zip(mine, theirs):
        assert a.dtype == b.dtype
        assert (a.float() - b.float()).norm() < 0.03 * b.float().norm()


def test_dropout_is_applied():
    given = inputs()
    torch.manual_seed(1)
    assert not torch.allclose(attention(*given[:3], AttentionBias(given[3]), SCALE, dropout=0.5), plain(*given, False, None))
