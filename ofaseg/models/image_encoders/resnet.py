"""ResNet up to its third stage: 1024 channels at stride 16, with torchvision's parameter names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.image_encoders.folded import FoldedConvolutions, FoldingEncoder
from ofaseg.models.ofa.attention import DropPath

STAGE_BLOCKS = {"resnet50": (3, 4, 6), "resnet101": (3, 4, 23), "resnet152": (3, 8, 36)}


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and fixed affine map; buffers as in `nn.BatchNorm2d`."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, dilated), 1x1 convolutions around a residual; `channels` in the middle, 4x at the end."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: type[nn.Module], drop_path: float, dilation: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = norm(4 * channels)
        self.downsample = None
        if stride != 1 or in_channels != 4 * channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, 4 * channels, 1, stride, bias=False), norm(4 * channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, 4*channels, ceil(h/stride), ceil(w/stride))."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.drop_path(self.bn3(self.conv3(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y + shortcut, inplace=True)

    def evaluate(self, x: Tensor, folded: FoldedConvolutions) -> Tensor:
        """As `forward` in evaluation mode; `x` may be overwritten."""
        y = folded(x, self.conv1, self.bn1)
        y = folded(y, self.conv2, self.bn2)
        shortcut = x if self.downsample is None else folded(x, *self.downsample, relu=False)
        return folded(y, self.conv3, self.bn3, residual=shortcut)


class ResNet(FoldingEncoder):
    """ResNet v1.5 without its fourth stage.

    Args:
        name: a key of STAGE_BLOCKS.
        frozen_batch_norm: use FrozenBatchNorm2d.
        drop_path: probability of dropping a block's branch, rising linearly within each stage.
    """

    out_feature = "res4"
    out_channels = {"res4": 1024}
    out_strides = {"res4": 16}

    def __init__(self, name: str = "resnet50", frozen_batch_norm: bool = True, drop_path: float = 0.0):
        super().__init__()
        norm = FrozenBatchNorm2d if frozen_batch_norm else nn.BatchNorm2d
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = norm(64)
        channels = 64
        for stage, blocks in enumerate(STAGE_BLOCKS[name]):
            middle, stride = 64 * 2**stage, 1 if stage == 0 else 2
            rates = [drop_path * i / max(blocks - 1, 1) for i in range(blocks)]
            layer = nn.Sequential()
            for i in range(blocks):
                layer.append(Bottleneck(channels, middle, stride if i == 0 else 1, norm, rates[i]))
                channels = 4 * middle
            self.add_module(f"layer{stage + 1}", layer)
        self._finish()

    def _features(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        return self.layer3(self.layer2(self.layer1(x)))

    def _folded_features(self, images: Tensor) -> Tensor:
        x = self.folded(images.to(memory_format=torch.channels_last), self.conv1, self.bn1)
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                x = block.evaluate(x, self.folded)
        return x
