"""Image encoders with feature maps at strides 4, 8, 16 and 32, for mask models: ResNets with frozen batch norm, and timm's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.image_encoders.folded import FoldingEncoder, may_fold
from ofaseg.models.image_encoders.resnet import Bottleneck, FrozenBatchNorm2d

LEVELS = ("res2", "res3", "res4", "res5")
STRIDES = dict(zip(LEVELS, (4, 8, 16, 32)))

SIZES = {
    "resnet50": dict(blocks=(3, 4, 6, 3)),
    "resnet101c": dict(blocks=(3, 4, 23, 3), deep_stem=True, last_dilations=(1, 2, 4)),
    "resnet_nano": dict(blocks=(1, 1, 1, 1), width=16),
}
"""Name -> sizes; `resnet101c` is DeepLab's ResNet-101: a stem of three convolutions, and dilations 1, 2, 4 in the last stage."""
TIMM_PREFIX = "timm:"


class ResNetPyramid(FoldingEncoder):
    """ResNet v1.5 with all four stages; batch norms have fixed statistics and a fixed affine map, convolutions are trained.

    Args:
        blocks: of each stage.
        width: channels in the middle of the first stage's blocks; their output, res2, has four times as many.
        deep_stem: three 3x3 convolutions (to `width`, `width`, twice `width`) in place of one of 7x7.
        last_dilations: of the 3x3 convolutions of the last stage, block by block.

    Attributes:
        out_channels: of each of `LEVELS`.
    """

    out_feature = "res5"
    out_strides = STRIDES

    def __init__(self, blocks=(3, 4, 6, 3), width: int = 64, deep_stem: bool = False, last_dilations=None):
        super().__init__()
        stem = [(3, width, 3, 2), (width, width, 3, 1), (width, 2 * width, 3, 1)] if deep_stem else [(3, width, 7, 2)]
        self.stem_convolutions = len(stem)
        for n, (inputs, outputs, kernel, stride) in enumerate(stem, 1):
            self.add_module(f"conv{n}", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False))
            self.add_module(f"bn{n}", FrozenBatchNorm2d(outputs))
        channels = stem[-1][1]
        self.out_channels = {}
        for stage, number in enumerate(blocks):
            middle, stride = width * 2**stage, 1 if stage == 0 else 2
            dilations = last_dilations if last_dilations and stage == len(blocks) - 1 else (1,) * number
            layer = nn.Sequential()
            for i in range(number):
                layer.append(Bottleneck(channels, middle, stride if i == 0 else 1, FrozenBatchNorm2d, 0.0, dilations[i]))
                channels = 4 * middle
            self.add_module(f"layer{stage + 1}", layer)
            self.out_channels[LEVELS[stage]] = channels
        self._finish()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised photos (B, 3, H, W) -> for each of `LEVELS` (B, C, ceil(H / stride), ceil(W / stride))."""
        folded = may_fold(self)
        x = images.to(memory_format=torch.channels_last)
        for n in range(1, self.stem_convolutions + 1):
            conv, norm = getattr(self, f"conv{n}"), getattr(self, f"bn{n}")
            x = self.folded(x, conv, norm) if folded else F.relu(norm(conv(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        features = {}
        for n, level in enumerate(LEVELS, 1):
            for block in getattr(self, f"layer{n}"):
                # a stage begins with a block of a new width, which leaves its input, the map before it, as it is
                x = block.evaluate(x, self.folded) if folded else block(x)
            features[level] = x
        return features


class TimmPyramid(nn.Module):
    """Any model of timm that has feature maps at strides 4, 8, 16 and 32; weights start at random, nothing is downloaded.

    Raises:
        ValueError: timm has no model of this name, or it has other strides.
    """

    out_strides = STRIDES

    def __init__(self, name: str):
        super().__init__()
        import timm  # takes a second: only for those who build one

        try:
            probe = timm.create_model(name, features_only=True, pretrained=False)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"timm has no feature pyramid {name!r} ({error}); timm.list_models() lists names") from error
        reductions = probe.feature_info.reduction()
        missing = [stride for stride in STRIDES.values() if stride not in reductions]
        if missing:
            raise ValueError(f"{name!r} of timm has feature maps at strides {reductions}; needed are {list(STRIDES.values())}")
        indices = [max(k for k, stride in enumerate(reductions) if stride == wanted) for wanted in STRIDES.values()]
        self.model = timm.create_model(name, features_only=True, pretrained=False, out_indices=indices)
        self.out_channels = dict(zip(LEVELS, self.model.feature_info.channels()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised photos (B, 3, H, W), sides multiples of 32 -> for each of `LEVELS` (B, C, H / stride, W / stride)."""
        features = dict(zip(LEVELS, self.model(images)))
        # some of timm's transformers return channels last
        return {level: x if x.shape[1] == self.out_channels[level] else x.permute(0, 3, 1, 2).contiguous() for level, x in features.items()}


def build_pyramid(name: str) -> nn.Module:
    """The image encoder called `name`: a key of `SIZES`, or `timm:` and a name of timm.

    Raises:
        ValueError: unknown name.
    """
    if name.startswith(TIMM_PREFIX):
        return TimmPyramid(name.removeprefix(TIMM_PREFIX))
    if name not in SIZES:
        raise ValueError(f"unknown image encoder {name!r}; known: {', '.join(SIZES)}, and {TIMM_PREFIX}<name> for those of timm")
    return ResNetPyramid(**SIZES[name])
