"""A small convolutional stem for models that are trained from scratch on a laptop."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.image_encoders.folded import FoldedConvolutions, FoldingEncoder


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a residual, `channels` in and out."""

    def __init__(self, channels: int, norm: type[nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(x + self.bn2(self.conv2(y)), inplace=True)

    def evaluate(self, x: Tensor, folded: FoldedConvolutions) -> Tensor:
        """As `forward` in evaluation mode; `x` may be overwritten."""
        return folded(folded(x, self.conv1, self.bn1), self.conv2, self.bn2, residual=x)


class ConvStem(FoldingEncoder):
    """3 -> 32 -> 64 -> residual -> 128 -> residual; 128 channels at stride 8, or 4 with the last step unstrided.

    Args:
        stride: 8 or 4.
        norm: normalisation of `n` channels.
    """

    out_feature = "stem"
    out_channels = {"stem": 128}

    def __init__(self, stride: int = 8, norm: type[nn.Module] = nn.BatchNorm2d):
        super().__init__()
        if stride not in (4, 8):
            raise ValueError(f"the convolutional stem has stride 4 or 8, not {stride}")
        self.out_strides = {"stem": stride}
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), norm(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, 2, 1, bias=False), norm(64)
        self.block1 = ResidualBlock(64, norm)
        self.conv3, self.bn3 = nn.Conv2d(64, 128, 3, stride // 4, 1, bias=False), norm(128)
        self.block2 = ResidualBlock(128, norm)
        self._finish()

    def _features(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.block1(x)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        return self.block2(x)

    def _folded_features(self, images: Tensor) -> Tensor:
        x = self.folded(images.to(memory_format=torch.channels_last), self.conv1, self.bn1)
        x = self.block1.evaluate(self.folded(x, self.conv2, self.bn2), self.folded)
        return self.block2.evaluate(self.folded(x, self.conv3, self.bn3), self.folded)
