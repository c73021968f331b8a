"""Image towers that are read as they are: photos to unit vectors of patches, behind one interface.

An image tower has `dim` (width of its vectors) and `stride` (pixels per patch); its `forward` takes normalised photos (B, 3, H, W),
sides multiples of `stride`, to (B, h * w, dim) float32 unit vectors row by row, and (h, w).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.clip_towers import before_last_block, grid_of
from ofaseg.models.image_encoders.mobilenet_v2 import MobileNetV2
from ofaseg.models.layers.clip_block import run_block

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
        tokens = run_block(visual.transformer.resblocks[-1], tokens)[:, 1:]
        return unit_vectors(visual.ln_post(tokens) @ visual.proj), grid


class TimmPatches(nn.Module):
    """A model of timm: the normed tokens of a vision transformer without its prefix ones, or the last feature map of any other.

    Args:
        name: timm's name, such as vit_base_patch16_224 or mobilenetv2_100; nothing is downloaded.

    Raises:
        ValueError: timm knows no model of this name, or one whose feature maps it cannot give.
    """

    def __init__(self, name: str):
        super().__init__()
        import timm  # takes a second: only for those who build one
        from timm.models import is_model_in_modules

        if not timm.is_model(name):
            similar = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
            known = f"neither clip, {', '.join(NAMED)}, nor a model of timm"
            raise ValueError(f"image tower {name!r}: {known}{f' (similar: {similar})' if similar else ''}")
        self.is_transformer = is_model_in_modules(name, TRANSFORMERS)
        options = dict(dynamic_img_size=True) if self.is_transformer else {}
        self.backbone = timm.create_model(name, pretrained=False, num_classes=0, **options)
        if not hasattr(self.backbone, "forward_intermediates"):
            raise ValueError(f"image tower {name!r}: timm gives no feature maps of it; take another model")
        last = self.backbone.feature_info[-1]
        self.dim, self.stride = last["num_chs"], last["reduction"]

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patches and grid as the module docstring says. Raises ValueError when a side is no multiple of the stride."""
        grid = grid_of(image, self.stride)
        # a convolutional network has no norm behind its last feature map
        maps = self.backbone.forward_intermediates(image, indices=1, norm=self.is_transformer, output_fmt="NCHW", intermediates_only=True)
        return unit_vectors(maps[-1].flatten(2).transpose(1, 2)), grid


class MobileNetPatches(nn.Module):
    """MobileNetV2 with folded norms; it wants photos in -1..1.

    Args:
        stride: pixels per cell, 32 or 16.
    """

    def __init__(self, stride: int):
        super().__init__()
        self.backbone = MobileNetV2(stride)
        self.dim, self.stride = self.backbone.dim, stride

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patches and grid as the module docstring says. Raises ValueError when a side is no multiple of the stride."""
        grid = grid_of(image, self.stride)
        return unit_vectors(self.backbone(image).flatten(2).transpose(1, 2)), grid


NAMED = {"mobilenet_v2": lambda: MobileNetPatches(32), "mobilenet_v2_stride16": lambda: MobileNetPatches(16)}
"""Image towers of our own; every other name is one of timm."""


def build_image_tower(name: str) -> nn.Module:
    """The tower of `NAMED`, or timm's model of that name, with weights at random. Raises ValueError for an unknown name."""
    return NAMED[name]() if name in NAMED else TimmPatches(name)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Float32 vectors of length 1 along the last axis; zeros stay zeros."""
    return F.normalize(vectors.float(), dim=-1, eps=1e-12)
