"""The pixel decoder of Mask2Former (Cheng et al., CVPR 2022, section 3.2.2): deformable self-attention over strides 32, 16 and 8."""

import math
from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.layers.deformable_attention import DeformableAttention
from ofaseg.models.layers.dropout import Dropout, relu_dropout

GROUPS = 32
READ_LEVELS = ("res5", "res4", "res3")
"""Of coarse to fine; the maps that attention runs over."""


class PixelFeatures(NamedTuple):
    """What a pixel decoder returns, before texts play a part.

    Attributes:
        mask_features: (B, M, H/4, W/4), whose products with mask embeddings are mask logits.
        maps: three (B, D, h, w) at strides 32, 16, 8.
    """

    mask_features: Tensor
    maps: tuple[Tensor, ...]


def sine_positions(height: int, width: int, dim: int, device=None) -> Tensor:
    """(height * width, dim) sines and cosines of row (first half) and column (second), counted from 1 and scaled to 2 * pi."""
    half = dim // 2
    frequency = 10000 ** (2 * torch.div(torch.arange(half, device=device), 2, rounding_mode="floor").float() / half)
    axes = []
    for size in (height, width):
        place = torch.arange(1, size + 1, device=device, dtype=torch.float32) / (size + 1e-6) * (2 * math.pi)
        angle = place[:, None] / frequency
        axes.append(torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1))
    rows = axes[0][:, None].expand(-1, width, -1)
    columns = axes[1][None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def pixel_centres(height: int, width: int, device=None) -> Tensor:
    """(height * width, 2) x and y of pixel centres in 0..1, row by row."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x[None].expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1)


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by residual and norm."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = DeformableAttention(dim, heads, levels, points)
        self.attention_norm = nn.LayerNorm(dim)
        self.expand, self.contract = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        for layer in (self.expand, self.contract):
            nn.init.xavier_uniform_(layer.weight)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, reference: Tensor, shapes) -> Tensor:
        """Tokens (B, S, dim), positions (S, dim), reference (S, 2) -> (B, S, dim)."""
        x = self.attention_norm(x + self.dropout(self.attention(x + positions, x, reference, shapes)))
        hidden = self.expand(x)
        hidden = relu_dropout(hidden, self.dropout.p) if self.training else F.relu(hidden)
        return self.norm(x + self.dropout(self.contract(hidden)))


class NormedConv(nn.Module):
    """Convolution without bias and group norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, outputs)
        nn.init.kaiming_uniform_(self.conv.weight, a=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class PixelDecoder(nn.Module):
    """Feature maps of an image encoder -> three maps that have seen each other, and fine mask features. Computed in float32.

    Args:
        channels: of res2 .. res5.
        dim: width of tokens, a multiple of 32.
        mask_dim: channels of the mask features.
        layers, heads, points, hidden: of the deformable encoder.
        dropout: in the encoder.
    """

    def __init__(
        self, channels: dict[str, int], dim: int, mask_dim: int, layers: int, heads: int, points: int, hidden: int, dropout: float
    ):
        super().__init__()
        if dim % GROUPS or dim % heads:
            raise ValueError(f"a pixel decoder {dim} wide: it must be a multiple of {GROUPS} and of its {heads} heads")
        self.dim = dim
        self.inputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[level], dim, 1), nn.GroupNorm(GROUPS, dim)) for level in READ_LEVELS
        )  # fmt: skip
        for conv, _ in self.inputs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        self.level_embedding = nn.Parameter(torch.randn(len(READ_LEVELS), dim))
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, len(READ_LEVELS), points, hidden, dropout) for _ in range(layers))
        self.lateral = NormedConv(channels["res2"], dim, 1)
        self.fuse = NormedConv(dim, dim, 3)
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, features: dict[str, Tensor]) -> PixelFeatures:
        """res2 .. res5, each (B, C, h, w) -> `PixelFeatures`."""
        with torch.autocast(features["res5"].device.type, enabled=False):
            return self._forward({level: value.float() for level, value in features.items()})

    def _forward(self, features: dict[str, Tensor]) -> PixelFeatures:
        projected = [project(features[level]) for project, level in zip(self.inputs, READ_LEVELS)]
        shapes = [tuple(x.shape[2:]) for x in projected]
        device = projected[0].device
        positions = torch.cat(
            [sine_positions(*shape, self.dim, device) + embedding for shape, embedding in zip(shapes, self.level_embedding)]
        )
        reference = torch.cat([pixel_centres(*shape, device) for shape in shapes])
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], 1)
        for layer in self.layers:
            tokens = layer(tokens, positions, reference, shapes)
        maps = _as_maps(tokens, shapes)
        lateral = self.lateral(features["res2"])
        fine = lateral + F.interpolate(maps[-1], size=lateral.shape[2:], mode="bilinear", align_corners=False)
        return PixelFeatures(self.mask_features(F.relu(self.fuse(fine))), maps)


def _as_maps(tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """(B, S, D) -> (B, D, h, w) of every level."""
    parts = tokens.split([height * width for height, width in shapes], 1)
    return tuple(part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes))
