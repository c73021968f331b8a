"""Semantic context interaction: feature maps read the class texts before masks are predicted (FreeSeg, section 3.3)."""

import torch
from torch import Tensor, nn

from ofaseg.models.layers.dropout import ShareDropout

CHUNK_ELEMENTS = 2**21
"""Attention weights that exist at a time in inference."""


class TextInteraction(nn.Module):
    """Cross-attention from pixels to texts; all maps go through the same weights, one after the other.

    As in the published code, the residual starts from the normalised pixels, and each map reads texts that went through the text
    norm once more than for the map before: the order of the maps matters.

    A pixel's projected query meets few texts, so the query projection is multiplied into the keys and the output projection into the
    values: the same sums with two matrix products per pixel and no wide intermediate.

    Args:
        dim: width of pixels.
        text_dim: width of texts.
        inner: width of queries, keys and values of all heads together.
        heads: attention heads.
        dropout: of attention weights in training.
    """

    def __init__(self, dim: int, text_dim: int, inner: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.scale = (inner // heads) ** -0.5
        self.gamma = nn.Parameter(torch.full((dim,), 0.1))
        self.pixel_norm, self.text_norm = nn.LayerNorm(dim), nn.LayerNorm(text_dim)
        self.q_proj, self.out_proj = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.k_proj, self.v_proj = nn.Linear(text_dim, inner), nn.Linear(text_dim, inner)
        self.dropout = ShareDropout(dropout)

    def forward(self, maps: list[Tensor], text: Tensor) -> list[Tensor]:
        """Maps (B, dim, h, w) of any sizes and texts (T, text_dim) -> as many maps of the same shapes."""
        results = []
        for feature_map in maps:
            text = self.text_norm(text)
            pixels = self.pixel_norm(feature_map.flatten(2).transpose(1, 2))
            pixels = pixels + self.gamma * self._attend(pixels, *self._folded(text))
            results.append(pixels.transpose(1, 2).unflatten(2, feature_map.shape[2:]))
        return results

    def _folded(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Texts (T, text_dim) -> keys (heads * T, dim), their biases (heads * T), values (heads * T, dim)."""
        with torch.autocast(text.device.type, enabled=False):
            text, heads = text.to(self.k_proj.weight.dtype), self.heads
            keys = self.k_proj(text).unflatten(1, (heads, -1)).transpose(0, 1) * self.scale  # (heads, T, inner / heads)
            values = self.v_proj(text).unflatten(1, (heads, -1)).transpose(0, 1)
            bias = (keys @ self.q_proj.bias.view(heads, -1, 1)).flatten()
            keys = (keys @ self.q_proj.weight.unflatten(0, (heads, -1))).flatten(0, 1)
            values = (values @ self.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)).flatten(0, 1)
        return keys, bias, values

    def _attend(self, pixels: Tensor, keys: Tensor, bias: Tensor, values: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        rows = pixels.flatten(0, 1)
        step = len(rows) if torch.is_grad_enabled() else max(1, CHUNK_ELEMENTS // len(keys))
        parts = []
        for part in rows.split(step):
            weights = torch.addmm(bias.to(part.dtype), part, keys.T.to(part.dtype)).unflatten(1, (self.heads, -1)).softmax(-1)
            weights = self.dropout(weights).flatten(1)
            parts.append(torch.addmm(self.out_proj.bias.to(weights.dtype), weights, values.to(weights.dtype)))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view_as(pixels)
