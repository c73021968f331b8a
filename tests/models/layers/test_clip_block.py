"""Blocks of CLIP's towers in pieces, against open_clip's own forward pass."""

import pytest
import torch

transformer = pytest.importorskip("open_clip.transformer")

from ofaseg.models.layers.clip_block import run_block, run_block_for_first  # noqa: E402

GELUS = {"quick": transformer.QuickGELU, "plain": torch.nn.GELU}


def block_and_tokens(gelu: str):
    torch.manual_seed(0)
    block = transformer.ResidualAttentionBlock(24, 3, act_layer=GELUS[gelu], ls_init_value=0.3)
    torch.nn.init.normal_(block.attn.in_proj_bias)
    torch.nn.init.normal_(block.attn.out_proj.bias)
    return block, torch.randn(2, 7, 24, requires_grad=True)


@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("causal", [False, True])
def test_outputs_and_gradients(gelu, causal):
    block, tokens = block_and_tokens(gelu)
    mask = torch.full((7, 7), float("-inf")).triu(1) if causal else None
    grad = torch.randn(2, 7, 24)
    expected, found = block(tokens, attn_mask=mask), run_block(block, tokens, mask)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    inputs = [tokens, *block.parameters()]
    for ours, theirs in zip(torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gelu", GELUS)
def test_the_first_token_alone(gelu):
    block, tokens = block_and_tokens(gelu)
    expected, found = block(tokens)[:, :1], run_block_for_first(block, tokens)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    inputs, grad = [tokens, *block.parameters()], torch.randn(2, 1, 24)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(run_block_for_first(block, tokens), block(tokens)[:, :1], atol=0.05, rtol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("gelu", GELUS)
def test_without_gradients_and_in_bfloat16(gelu):
    block, tokens = block_and_tokens(gelu)
    before = tokens.clone()
    torch.testing.assert_close(run_block(block, tokens), block(tokens), atol=1e-6, rtol=1e-5)
    assert torch.equal(tokens, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(run_block(block, tokens), block(tokens), atol=0.05, rtol=0.05)
    half = block.to(torch.bfloat16)
    torch.testing.assert_close(run_block(half, tokens.bfloat16()), half(tokens.bfloat16()), atol=0.05, rtol=0.05)
