"""Attention with an additive bias that the whole batch shares, and the blocks of an OFA layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.layers.dropout import dropout
from ofaseg.models.ofa.recompute import gelu_norm_linear
from ofaseg.models.ofa.relative import AttentionBias
from ofaseg.models.ofa.shared_bias_attention import attention


@dataclass(frozen=True)
class Sizes:
    """What encoder and decoder have in common.

    Attributes:
        dim, ffn_dim, heads: widths D and F of the layers, attention heads H.
        scale_factor: attention scores are divided by sqrt(D / H * scale_factor).
        image_bucket_size: side of the largest patch grid that the image position tables hold.
        token_bucket_size: buckets of relative text positions in each direction.
        max_positions: longest text in tokens.
        dropout: of embeddings and every residual branch; attention_dropout: of probabilities; activation_dropout: after the GELU.
    """

    dim: int
    ffn_dim: int
    heads: int
    scale_factor: float = 2.0
    image_bucket_size: int = 42
    token_bucket_size: int = 256
    max_positions: int = 1024
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0

    @property
    def score_scale(self) -> float:
        """Factor of the attention scores, and of the position scores that join them."""
        return (self.dim / self.heads * self.scale_factor) ** -0.5


class MosaicTokens(NamedTuple):
    """Tokens of a mosaic of words and of the text after it: what depends on a token alone is computed once per word.

    Attributes:
        words: (C, D), one row for each word the mosaics are made of.
        cells: (B, P) rows of `words` that the image tokens repeat.
        text: (B, L, D) text tokens.
    """

    words: Tensor
    cells: Tensor
    text: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "MosaicTokens":
        """The same tokens after a function of each by itself, (..., D) -> (..., E)."""
        return MosaicTokens(function(self.words), self.cells, function(self.text))

    def dense(self) -> Tensor:
        """(B, P+L, D), image tokens first."""
        return torch.cat([F.embedding(self.cells, self.words), self.text.to(self.words.dtype)], dim=1)


class MultiheadAttention(nn.Module):
    """Multi-head attention with one learned scale per head (`c_attn`)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        dim, heads = sizes.dim, sizes.heads
        if dim % heads:
            raise ValueError(f"width {dim} is not a multiple of {heads} heads")
        self.heads = heads
        self.scale = sizes.score_scale
        self.dropout = sizes.attention_dropout
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.c_attn = nn.Parameter(torch.ones(heads))

    def forward(self, x: Tensor, memory: Tensor, bias: AttentionBias, key_padding: Optional[Tensor] = None) -> Tensor:
        """x (B, T, D) looks at memory (B, S, D); bias of (H, T, S); key_padding (B, S) bool. Returns (B, T, D)."""
        if memory is x:
            return self.attend(*self.project(x).chunk(3, dim=-1), bias, key_padding)
        key, value = F.linear(memory, *self._joined(self.k_proj, self.v_proj)).chunk(2, dim=-1)
        return self.attend(self.q_proj(x), key, value, bias, key_padding)

    def project(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 3 D): queries, keys and values of tokens that look at each other."""
        return F.linear(x, *self._joined(self.q_proj, self.k_proj, self.v_proj))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: AttentionBias, key_padding: Optional[Tensor] = None) -> Tensor:
        """(B, T, D) of projected queries (B, T, D), keys and values (B, S, D); the rest as in `forward`."""
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        heads = attention(query, key, value, bias, self.scale, key_padding, self.dropout if self.training else 0.0)
        # the scale of a head is a scale of the columns of the output projection that read it
        weight = self.out_proj.weight * self.c_attn.repeat_interleave(heads.shape[-1])
        return F.linear(heads.transpose(1, 2).flatten(2), weight, self.out_proj.bias)

    @staticmethod
    def _joined(*linears: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias of several linear maps as one."""
        return torch.cat([linear.weight for linear in linears]), torch.cat([linear.bias for linear in linears])


class DropPath(nn.Module):
    """Drops a whole residual branch per sample while training; x is (B, ...), `rate` the probability."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


class TransformerLayer(nn.Module):
    """Base of the encoder and decoder layers: the feed-forward half and the residual branches.

    Args:
        sizes: see there.
        drop_path: probability of dropping a branch of a sample.
    """

    def __init__(self, sizes: Sizes, drop_path: float = 0.0):
        super().__init__()
        dim, ffn_dim = sizes.dim, sizes.ffn_dim
        self.self_attn = MultiheadAttention(sizes)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.ffn_layernorm = nn.LayerNorm(ffn_dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.dropout = sizes.dropout
        self.activation_dropout = sizes.activation_dropout
        self.drop_path = DropPath(drop_path)

    def residual(self, x: Tensor, branch: Tensor) -> Tensor:
        """x + branch, with dropout and stochastic depth on the branch."""
        if self.training:
            branch = dropout(branch, self.dropout)
        return x + self.drop_path(branch)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half of a layer: (B, T, D) -> (B, T, D), residual included."""
        hidden = self.fc1(self.final_layer_norm(x))
        if self.training and self.activation_dropout:
            branch = self.fc2(self.ffn_layernorm(dropout(F.gelu(hidden), self.activation_dropout)))
        else:
            branch = gelu_norm_linear(hidden, self.ffn_layernorm, self.fc2)
        return self.residual(x, branch)


class EncoderLayer(TransformerLayer):
    """Pre-norm self-attention and feed-forward layer of the encoder; arguments of TransformerLayer."""

    def __init__(self, sizes: Sizes, drop_path: float = 0.0):
        super().__init__(sizes, drop_path)
        self.attn_ln = nn.LayerNorm(sizes.dim)

    def forward(self, x: Tensor | MosaicTokens, bias: AttentionBias, key_padding: Optional[Tensor] = None) -> Tensor:
        """x (B, T, D), bias of (H, T, T), key_padding (B, T) -> (B, T, D)."""
        if isinstance(x, MosaicTokens):
            projected = x.map(lambda tokens: self.self_attn.project(self.self_attn_layer_norm(tokens))).dense()
            x = x.dense()
        else:
            projected = self.self_attn.project(self.self_attn_layer_norm(x))
        attended = self.self_attn.attend(*projected.chunk(3, dim=-1), bias, key_padding)
        return self.feed_forward(self.residual(x, self.attn_ln(attended)))


class DecoderLayer(TransformerLayer):
    """Pre-norm self-attention, cross-attention and feed-forward layer of the decoder; arguments of TransformerLayer."""

    def __init__(self, sizes: Sizes, drop_path: float = 0.0):
        super().__init__(sizes, drop_path)
        self.self_attn_ln = nn.LayerNorm(sizes.dim)
        self.encoder_attn = MultiheadAttention(sizes)
        self.encoder_attn_layer_norm = nn.LayerNorm(sizes.dim)
        self.cross_attn_ln = nn.LayerNorm(sizes.dim)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        self_bias: AttentionBias,
        cross_bias: AttentionBias,
        self_padding: Optional[Tensor] = None,
        memory_padding: Optional[Tensor] = None,
    ) -> Tensor:
        """x (B, T, D), memory (B, S, D), biases of (H, T, T) and (H, T, S), paddings (B, T), (B, S) -> (B, T, D)."""
        y = self.self_attn_layer_norm(x)
        x = self.residual(x, self.self_attn_ln(self.self_attn(y, y, self_bias, self_padding)))
        y = self.encoder_attn_layer_norm(x)
        x = self.residual(x, self.cross_attn_ln(self.encoder_attn(y, memory, cross_bias, memory_padding)))
        return self.feed_forward(x)


def drop_path_rates(rate: float, layers: int) -> list[float]:
    """Rates of `layers` layers, rising linearly from 0 to `rate`."""
    return [rate * i / max(layers - 1, 1) for i in range(layers)]


def bias_tables(layers: int, rows: int, heads: int) -> nn.ModuleList:
    """A relative-position table (rows, H) for each layer."""
    return nn.ModuleList(nn.Embedding(rows, heads) for _ in range(layers))


def absolute_bias(
    query_positions: Tensor, key_positions: Tensor, query_linear: nn.Linear, key_linear: nn.Linear, heads: int, scale: float
) -> Tensor:
    """(H, T, S) bias s (W_q p + b_q) (W_k p' + b_k)^T per head, of positions p (T, D) and p' (S, D)."""
    query = query_linear(query_positions).unflatten(1, (heads, -1)).transpose(0, 1) * scale
    key = key_linear(key_positions).unflatten(1, (heads, -1)).transpose(0, 1)
    return query @ key.transpose(1, 2)
