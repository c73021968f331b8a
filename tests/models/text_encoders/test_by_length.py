"""Texts sorted by length give what they give one by one, in their own order."""

import pytest
import torch

from ofaseg.models.simseg import SimSeg, architecture_config
from ofaseg.models.text_encoders.by_length import encode_by_length


@pytest.mark.parametrize(
    "chunk_tokens, expected_shapes",
    [(1, [(1, 2), (1, 2), (1, 3), (1, 7), (1, 9), (1, 12)]), (20, [(3, 3), (2, 9), (1, 12)]), (10_000, [(6, 12)])],
)
def test_order_and_padding_change_nothing(chunk_tokens, expected_shapes):
    lengths = torch.tensor([3, 9, 2, 12, 2, 7])
    mask = (torch.arange(12)[None] < lengths[:, None]).long()
    ids = torch.randint(1, 20, mask.shape) * mask
    model = SimSeg(architecture_config("simseg_nano", image_size=16), 20).eval()
    shapes = []

    def encode(part, part_mask):
        shapes.append(tuple(part.shape))
        return model.embed_text(part, part_mask)

    with torch.no_grad():
        found = encode_by_length(encode, ids, mask, "cpu", chunk_tokens)
        expected = torch.cat([model.embed_text(ids[k : k + 1], mask[k : k + 1]) for k in range(6)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert shapes == expected_shapes
