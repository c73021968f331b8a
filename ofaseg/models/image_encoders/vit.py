"""Vision transformers of timm, read as a grid of patch tokens at any photo size."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.layers.whole_tiles import whole_tiles


def interpolate_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """Learned positions (1, 1 + s * s, D) of a square grid -> (1, 1 + height * width, D); the first row, of CLS, stays.

    Bicubic without antialiasing, as the published code resizes 224 px models to 288 px.

    Raises:
        ValueError: the positions are not those of CLS and a square grid.
    """
    side = math.isqrt(max(positions.shape[1] - 1, 0))
    if side == 0 or side * side != positions.shape[1] - 1:
        raise ValueError(f"{positions.shape[1]} position rows are not one for CLS and a square grid; this model reads square grids only")
    if (height, width) == (side, side):
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=(height, width), mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)


class PatchTransformer(nn.Module):
    """A timm vision transformer with a CLS token, learned positions and no head; its tokens come out as they are.

    Args:
        name: one of `TIMM_SIZES`; weights start at random, nothing is downloaded.
        side: photo side in pixels that the position table is made for.
        options: further arguments of timm's constructor (sizes of small models).

    Attributes:
        dim: width of a token.
        patch: pixels per patch.
    """

    def __init__(self, name: str, side: int, **options):
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer  # takes a second: only for those who build one

        self.vit = VisionTransformer(img_size=side, num_classes=0, global_pool="token", **(TIMM_SIZES[name] | options))
        self.dim, self.patch = self.vit.embed_dim, self.vit.patch_embed.patch_size[0]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised photos (B, 3, H, W), sides multiples of the patch -> (B, 1 + h * w, dim), CLS first, then row by row.

        Raises:
            ValueError: a side is no multiple of the patch.
        """
        height, width = images.shape[2] // self.patch, images.shape[3] // self.patch
        if (height * self.patch, width * self.patch) != tuple(images.shape[2:]):
            size = f"{images.shape[2]}x{images.shape[3]}"
            raise ValueError(f"photos of {size} pixels (height x width): both sides must be multiples of {self.patch}")
        vit = self.vit
        patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([vit.cls_token.expand(len(images), -1, -1), patches], 1)
        tokens = tokens + interpolate_positions(vit.pos_embed, height, width)
        count = tokens.shape[1]
        tokens, mask = whole_tiles(tokens)
        for block in vit.blocks:
            tokens = block(tokens, attn_mask=mask)
        return vit.norm(tokens[:, :count])


TIMM_SIZES = {
    "vit_small_patch16": dict(patch_size=16, embed_dim=384, depth=12, num_heads=6),
    "vit_base_patch16": dict(patch_size=16, embed_dim=768, depth=12, num_heads=12),
    "vit_nano_patch8": dict(patch_size=8, embed_dim=128, depth=4, num_heads=4),
}
"""Name -> sizes of timm's VisionTransformer; the nano one is for tests and drawn scenes."""
