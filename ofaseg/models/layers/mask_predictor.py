"""The transformer decoder of Mask2Former (Cheng et al., CVPR 2022, section 3.2.1): queries that become masks and vectors.

The attention of every layer is restricted to the mask predicted before it. A mask is the product of a query's embedding with the
pixels' features; resizing is linear, so those restrictions are computed from resized features, not from masks at full resolution.
"""

from typing import NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.layers.pixel_decoder import sine_positions


class Predictions(NamedTuple):
    """Attributes:
    embeddings: (L, B, Q, E), what classes are told by.
    mask_embeddings: L tensors (B, Q, M), whose products with mask features are mask logits.
    """

    embeddings: Tensor
    mask_embeddings: tuple[Tensor, ...]


class Mlp(nn.Module):
    """Linear layers with ReLU in between, through the given widths."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in zip(widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Attention(nn.Module):
    """Multi-head attention with residual and norm; parameters as in `nn.MultiheadAttention`."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        for weight in (self.in_proj_weight, self.out_proj.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, allowed: Optional[Tensor] = None) -> Tensor:
        """Queries x (B, Q, dim) at `position` (Q, dim), keys and values (B, N, dim), allowed (B, 1, Q, N) bool -> (B, Q, dim)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(source, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for source, weight, bias in zip((x + position, keys, values), weights, biases)
        )
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.norm(x + self.out_proj(found.transpose(1, 2).flatten(2)))


class PredictorLayer(nn.Module):
    """Masked cross-attention to one map, self-attention, feed-forward network."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.cross_attention, self.self_attention = Attention(dim, heads), Attention(dim, heads)
        self.expand, self.contract, self.norm = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.LayerNorm(dim)
        for layer in (self.expand, self.contract):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, query_position: Tensor, keys: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
        x = self.cross_attention(x, query_position, keys, memory, allowed)
        x = self.self_attention(x, query_position, x + query_position, x)
        return self.norm(x + self.contract(F.relu(self.expand(x))))


class MaskPredictor(nn.Module):
    """Q learned queries read three feature maps in turn.

    Args:
        dim: width of queries and maps.
        mask_dim: channels of the mask features.
        embedding_dim: E, width of what classes are told by.
        queries: Q.
        layers: of the decoder; there is one prediction before and one after each.
        heads, hidden: attention heads, width of the feed-forward networks.
        levels: feature maps.
        class_hidden: hidden width of the layers that make embeddings.
    """

    def __init__(
        self, dim: int, mask_dim: int, embedding_dim: int, queries: int, layers: int, heads: int, hidden: int, class_hidden: int,
        levels: int = 3,
    ):  # fmt: skip
        super().__init__()
        self.dim, self.levels = dim, levels
        self.query_features = nn.Parameter(torch.randn(queries, dim))
        self.query_positions = nn.Parameter(torch.randn(queries, dim))
        self.level_embedding = nn.Parameter(torch.randn(levels, dim))
        self.layers = nn.ModuleList(PredictorLayer(dim, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.mask_embed = Mlp(dim, dim, dim, mask_dim)
        self.class_embed = Mlp(dim, class_hidden, embedding_dim)

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor, last_only: bool = False) -> Predictions:
        """Maps (B, dim, h, w), coarse to fine, and mask features (B, mask_dim, H, W) -> predictions of the queries as learned and
        after every layer, L = 1 + layers; with `last_only` those after the last layer, L = 1.
        """
        batch = len(mask_features)
        memories, keys, coarse = [], [], []
        for feature_map, embedding in zip(maps, self.level_embedding):
            memory = feature_map.flatten(2).transpose(1, 2) + embedding
            memories.append(memory)
            keys.append(memory + sine_positions(*feature_map.shape[2:], self.dim, feature_map.device))
            small = F.interpolate(mask_features.detach(), size=feature_map.shape[2:], mode="bilinear", align_corners=False)
            coarse.append(small.flatten(2))
        x = self.query_features.expand(batch, -1, -1)
        states, mask_embeddings = [self.norm(x)], [self.mask_embed(self.norm(x))]
        for n, layer in enumerate(self.layers):
            level = n % self.levels
            allowed = _allowed(mask_embeddings[-1].detach(), coarse[level])
            x = layer(x, self.query_positions, keys[level], memories[level], allowed)
            states.append(self.norm(x))
            mask_embeddings.append(self.mask_embed(states[-1]))
        if last_only:
            states, mask_embeddings = states[-1:], mask_embeddings[-1:]
        return Predictions(self.class_embed(torch.stack(states)), tuple(mask_embeddings))


def _allowed(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """(B, 1, Q, N) bool: pixels whose probability to be in the mask is at least 0.5; all of them where there is none."""
    inside = (mask_embeddings @ mask_features.to(mask_embeddings.dtype)).sigmoid() >= 0.5
    return (inside | ~inside.any(-1, keepdim=True)).unsqueeze(1)
