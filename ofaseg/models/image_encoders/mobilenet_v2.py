"""MobileNetV2 (Sandler et al., CVPR 2018) with batch norm folded into its convolutions: a small frozen image tower.

The module names are torchvision's, so that its folded weights, stored as arrays, load as they are.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage (table 2 of the paper)."""
STEM_CHANNELS, LAST_CHANNELS = 32, 1280


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does ("SAME"): where padding is odd, the extra pixel stands to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for side, kernel, stride, dilation in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation):
            total = max(0, (-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side)
            pads = [total // 2, total - total // 2, *pads]
        return super().forward(F.pad(x, pads) if any(pads) else x)


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and ReLU6; the batch norm between them is folded into the first."""
    return nn.Sequential(SameConv2d(inputs, outputs, kernel, stride, dilation=dilation, groups=groups), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project without activation; added to the input where sizes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, dilation: int):
        super().__init__()
        hidden = inputs * expansion
        expand = [_convolution(inputs, hidden)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand, _convolution(hidden, hidden, 3, stride, dilation, groups=hidden), SameConv2d(hidden, outputs, 1)
        )  # fmt: skip
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """The feature maps of MobileNetV2 1.0 before its last convolution, and its classifier where asked for.

    Args:
        stride: pixels per cell of the feature map, 32, or 16: the last stride becomes a dilation, which keeps the weights' meaning.
        classes: of the classifier (1,001 for the published TensorFlow weights); 0 for none.

    Attributes:
        dim: channels of the feature map.

    Raises:
        ValueError: another stride.
    """

    dim = STAGES[-1][1]

    def __init__(self, stride: int = 32, classes: int = 0):
        super().__init__()
        if stride not in (16, 32):
            raise ValueError(f"MobileNetV2 at stride {stride}; choose 16 or 32")
        self.stride = stride
        layers: list[nn.Module] = [_convolution(3, STEM_CHANNELS, 3, 2)]
        channels, reached, dilation = STEM_CHANNELS, 2, 1
        for expansion, outputs, blocks, first in STAGES:
            # the block that would go below the wanted stride keeps its own dilation; those after it are spread
            own, spread = (first, 1) if reached * first <= stride else (1, first)
            for number in range(blocks):
                layers.append(InvertedResidual(channels, outputs, expansion, own if number == 0 else 1, dilation))
                dilation, channels = dilation * (spread if number == 0 else 1), outputs
            reached *= own
        self.features = nn.Sequential(*layers)
        self.classifier = None
        if classes:
            self.features.append(_convolution(channels, LAST_CHANNELS))
            self.classifier = nn.Sequential(OrderedDict({"1": nn.Conv2d(LAST_CHANNELS, classes, 1)}))

    def forward(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W), RGB in -1..1 -> (B, 320, ceil(H / stride), ceil(W / stride))."""
        return self.features[: len(LAYERS)](image)

    def classify(self, image: Tensor) -> Tensor:
        """Photos as `forward` takes them -> (B, classes) logits. Raises ValueError for a network without classifier."""
        if self.classifier is None:
            raise ValueError("this MobileNetV2 has no classifier; give it classes")
        return self.classifier(self.features(image).mean((2, 3), keepdim=True)).flatten(1)


LAYERS = range(1 + sum(blocks for _, _, blocks, _ in STAGES))
"""The modules of `MobileNetV2.features` that make the feature map."""


def arrays_state(arrays) -> dict[str, Tensor]:
    """Tensors of a mapping of arrays such as an open .npz, under the names of `MobileNetV2`; copies that can be written."""
    return {key: torch.from_numpy(arrays[key].copy()) for key in arrays}
