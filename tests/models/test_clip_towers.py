"""CLIP's image tower with the last block for CLS alone, against the whole tower."""

import pytest
import torch

pytest.importorskip("open_clip")

from ofaseg.models.clip_towers import CLIP_SIZES, ClipSizes, build_towers, image_vectors  # noqa: E402


@torch.no_grad()
def test_image_vectors_are_those_of_the_whole_tower():
    clip = build_towers(ClipSizes(**CLIP_SIZES["nano"])).eval()
    photos = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(image_vectors(clip, photos), clip.encode_image(photos, normalize=True), atol=1e-5, rtol=0)
