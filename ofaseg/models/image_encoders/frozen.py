"""Image towers that are read as they are: photos to unit vectors of patches, behind one interface.

An image tower has `dim` (width of its vectors) and `stride` (pixels per patch); its `forward` takes normalised photos (B, 3, H, W),
sides multiples of `stride`, to (B, h * w, dim) float32 unit vectors row by row, and (h, w).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.clip_towers import before_last_block, grid_of


TRANSFORMERS = ("vision_transformer", "deit", "eva")
"""Modules of timm whose models have tokens on a grid of patches at any photo size."""


class ClipPatches(nn.Module):
    """CLIP's vision transformer, its patches read as CLIP reads the CLS token: norm and projection (Fusioner, section 3.1).

    Args:
        visual: image tower of open_clip's CLIP.
    """

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.dim, self.stride = visual.proj.shape[1], visual.conv1.stride[0]

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patches and grid as the module docstring says. Raises ValueError when a side is no multiple of the patch."""
        visual = self.visual
        tokens, grid = before_last_block(visual, image, self.stride)
        tokens = visual.transformer.resblocks[-1](tokens)[:, 1:]
        return unit_vectors(visual.ln_post(tokens) @ visual.proj), grid


class TimmPatches(nn.Module):
    """Any model of timm: the tokens of a vision transformer without its prefix ones, or the last feature map of a convolutional one.

    Args:
        name: timm's name, such as vit_base_patch16_224 or mobilenetv2_100; nothing is downloaded.

    Raises:
        ValueError: timm knows no model of this name, or one that has neither tokens nor feature maps.
    """

    def __init__(self, name: str):
        super().__init__()
        import timm  # takes a second: only for those who build one

        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
            raise ValueError(f"image tower {name!r}: neither clip nor a model of timm{f' (similar: {close})' if close else ''}")
        self.is_transformer = timm.is_model_in_modules(name, TRANSFORMERS)
        if self.is_transformer:
            self.backbone = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
            self.dim, self.stride = self.backbone.embed_dim, self.backbone.patch_embed.patch_size[0]
        else:
            self.backbone = timm.create_model(name, pretrained=False, features_only=True)
            self.dim, self.stride = self.backbone.feature_info.channels()[-1], self.backbone.feature_info.reduction()[-1]

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patches and grid as the module docstring says. Raises ValueError when a side is no multiple of the stride."""
        grid = grid_of(image, self.stride)
        if self.is_transformer:
            tokens = self.backbone.forward_features(image)[:, self.backbone.num_prefix_tokens :]
        else:
            tokens = self.backbone(image)[-1].flatten(2).transpose(1, 2)
        return unit_vectors(tokens), grid


def unit_vectors(vectors: Tensor) -> Tensor:
    """Float32 vectors of length 1 along the last axis; zeros stay zeros."""
    return F.normalize(vectors.float(), dim=-1, eps=1e-12)
