"""Fusioner's decoder: fused patches to features on a grid eight times as fine."""

import torch.nn.functional as F
from torch import Tensor, nn

UPSAMPLING = 8
"""Features per patch along each axis."""


class UpsamplingDecoder(nn.Module):
    """3x3 convolutions with instance normalisation and ReLU; bilinear doubling after each of the first three.

    The normalisation takes the bias of the convolution before it away again, so that those four biases have no effect and a
    gradient of zero; the published weights have them.

    Args:
        width: channels.
    """

    def __init__(self, width: int):
        super().__init__()
        for i in range(4):
            setattr(self, f"conv_{i}", nn.Conv2d(width, width, 3, padding=1))
        self.conv_4 = nn.Conv2d(width, width, 1)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h * w, width) patches row by row, and (h, w) -> (B, width, 8 h, 8 w) features."""
        x = patches.transpose(1, 2).unflatten(2, grid)
        for i, conv in enumerate((self.conv_0, self.conv_1, self.conv_2, self.conv_3)):
            x = F.relu(F.instance_norm(conv(x)))
            if i < 3:
                x = F.interpolate(x, size=[side * 2 ** (i + 1) for side in grid], mode="bilinear", align_corners=False)
        return self.conv_4(x)
