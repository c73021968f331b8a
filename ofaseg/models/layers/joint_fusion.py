"""Fusioner's cross-modal transformer: self-attention over the patches of a photo and the vectors of class names together."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedAttention(nn.Module):
    """Self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width); every token sees every other."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return F.dropout(self.proj(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


class FeedForward(nn.Module):
    """Two linear layers around GELU, four times as wide in between."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2, self.dropout = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), dropout

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = F.dropout(F.gelu(self.fc1(tokens)), self.dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)


class FusionBlock(nn.Module):
    """One pre-norm block; a sample's branch is dropped whole with probability `drop_path` in training."""

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.attn = nn.LayerNorm(width), FusedAttention(width, heads, dropout)
        self.norm2, self.mlp = nn.LayerNorm(width), FeedForward(width, dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        tokens = tokens + self._kept(self.attn(self.norm1(tokens)))
        return tokens + self._kept(self.mlp(self.norm2(tokens)))

    def _kept(self, branch: Tensor) -> Tensor:
        if not self.drop_path or not self.training:
            return branch
        keep = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep) / keep


class JointFusion(nn.Module):
    """Patches and class names in one sequence (Fusioner, section 3.2).

    Args:
        visual_dim, text_dim: width of patch and text vectors.
        width, depth, heads: of the transformer.
        dropout: of attention and feed-forward output, in training.
        drop_path: of the last block; it rises linearly from 0 over the blocks.

    Raises:
        ValueError: `width` is no multiple of `heads`.
    """

    def __init__(
        self,
        visual_dim: int,
        text_dim: int,
        width: int = 512,
        depth: int = 12,
        heads: int = 8,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"a fusion {width} wide cannot have {heads} heads: the width has to be a multiple of them")
        self.visual_proj = nn.Sequential(nn.LayerNorm(visual_dim), nn.Linear(visual_dim, width), nn.LayerNorm(width))
        self.text_proj = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))
        self.cls_emb = nn.Parameter(torch.randn(1, width))
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(FusionBlock(width, heads, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.proj_patch = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.proj_classes = nn.Parameter(torch.randn(width, width) * width**-0.5)

    @torch.no_grad()
    def start_aligned(self) -> None:
        """Start values for towers that put photos and texts into one space: both are projected alike, and queries start as keys.

        So attention begins as a likeness, and patches heed the class that they look like, whether its name will be trained on or
        not; from independent start values, training finds the likeness of the names that it sees, and leaves the others to chance.

        Raises:
            ValueError: patches and text vectors are of different widths.
        """
        visual, text = self.visual_proj[1], self.text_proj[1]
        if visual.in_features != text.in_features:
            raise ValueError(
                f"photos of {visual.in_features} channels and texts of {text.in_features} share no space; leave --aligned-start out"
            )
        text.load_state_dict(visual.state_dict())
        for block in self.blocks:
            for value in (block.attn.qkv.weight, block.attn.qkv.bias):
                query, key, _ = value.chunk(3)
                query.copy_(key)

    def forward(self, patches: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Fuses each photo with its class list; every class changes what the others come to.

        Args:
            patches: (B, N, visual_dim).
            text: (K, text_dim) for all photos, or (B, K, text_dim).

        Returns: patches (B, N, width) and classes (B, K, width).
        """
        classes = (self.text_proj(text) + self.cls_emb).expand(len(patches), -1, -1)
        tokens = torch.cat([self.visual_proj(patches), classes], 1)
        for block in self.blocks:
            tokens = block(tokens)
        patches, classes = self.norm(tokens).split([patches.shape[1], classes.shape[1]], 1)
        return patches @ self.proj_patch, classes @ self.proj_classes
