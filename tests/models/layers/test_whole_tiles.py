"""Filling up to whole tiles: only where it is quicker, and nothing of it is seen in what comes out."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.models.layers.whole_tiles import whole_tiles


@pytest.mark.parametrize("count, filled", [(94, 96), (170, 176), (325, 336), (511, 512)])
def test_zeros_follow_and_the_mask_hides_them(count, filled):
    tokens = torch.randn(2, count, 8).bfloat16()
    found, mask = whole_tiles(tokens)
    assert found.shape == (2, filled, 8) and torch.equal(found[:, :count], tokens) and not found[:, count:].any()
    assert mask.shape == (1, 1, 1, filled) and not mask[..., :count].any() and (mask[..., count:] == -torch.inf).all()


@pytest.mark.parametrize("count", [1, 16, 50, 77, 197, 290, 336, 401, 512, 513, 577])
def test_whole_tiles_short_and_long_rows_stay(count):
    tokens = torch.randn(1, count, 8).bfloat16()
    assert whole_tiles(tokens)[0] is tokens and whole_tiles(tokens)[1] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_types_stay(dtype):
    tokens = torch.randn(1, 62, 8, dtype=dtype)
    assert whole_tiles(tokens)[0] is tokens


def test_under_autocast_its_type_counts():
    tokens = torch.randn(1, 62, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, mask = whole_tiles(tokens)
        assert found.shape == (1, 64, 8) and found.dtype == mask.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.float16):
        assert whole_tiles(tokens)[0] is tokens
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        assert whole_tiles(tokens)[0] is tokens


def test_other_devices_stay():
    tokens = torch.empty(1, 62, 8, device="meta", dtype=torch.bfloat16)
    assert whole_tiles(tokens)[0] is tokens


def test_autocast_leaves_float64_alone():
    tokens = torch.randn(1, 62, 8, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert whole_tiles(tokens)[0] is tokens


def test_attention_over_filled_rows_is_attention_over_the_tokens(monkeypatch):
    """In float32, where rounding hides nothing."""
    monkeypatch.setattr("ofaseg.models.layers.whole_tiles._work_type", lambda tokens: torch.bfloat16)
    torch.manual_seed(0)
    tokens = torch.randn(3, 94, 16)
    filled, mask = whole_tiles(tokens)
    assert filled.shape == (3, 96, 16)
    found = F.scaled_dot_product_attention(*[filled[:, None]] * 3, attn_mask=mask)[:, 0, :94]
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*[tokens[:, None]] * 3)[:, 0], atol=1e-5, rtol=1e-5)
