"""Image encoders by name.

Every encoder maps normalised photos (B, 3, H, W) to a dict of feature maps and declares `out_channels` and `out_strides`
of each; `out_feature` names the one that a patch-grid model reads.
"""

from torch import nn

from ofaseg.models.image_encoders.conv_stem import ConvStem
from ofaseg.models.image_encoders.resnet import STAGE_BLOCKS, FrozenBatchNorm2d, ResNet


def _resnet(name):
    return lambda frozen_batch_norm, drop_path, stride: ResNet(name, frozen_batch_norm, drop_path)


def _conv_stem(frozen_batch_norm, drop_path, stride):
    return ConvStem(stride, FrozenBatchNorm2d if frozen_batch_norm else nn.BatchNorm2d)


IMAGE_ENCODERS = {**{name: _resnet(name) for name in STAGE_BLOCKS}, "conv_stem": _conv_stem}


def build_image_encoder(name: str, frozen_batch_norm: bool = False, drop_path: float = 0.0, stride: int = 8) -> nn.Module:
    """The image encoder called `name`; `stride` concerns the convolutional stem, `drop_path` the ResNets.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in IMAGE_ENCODERS:
        raise ValueError(f"unknown image encoder {name!r}; known: {', '.join(IMAGE_ENCODERS)}")
    return IMAGE_ENCODERS[name](frozen_batch_norm, drop_path, stride)
