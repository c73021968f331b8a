"""OFA's encoder: image tokens (patches of a photo, or class words in their place), then text tokens."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from ofaseg.models.layers.dropout import dropout
from ofaseg.models.ofa import embeddings
from ofaseg.models.ofa.attention import EncoderLayer, MosaicTokens, Sizes, absolute_bias, bias_tables, drop_path_rates
from ofaseg.models.ofa.bias_cache import BiasCache, may_cache, weights_version
from ofaseg.models.ofa.relative import AttentionBias, GridTerm, TextTerm


class EncoderOutput(NamedTuple):
    """What the decoder needs. P = h * w image tokens come first, L text tokens after them.

    Attributes:
        tokens: (B, P+L, D) final hidden states.
        positions: (P+L, D) normalised position vectors, the same for every sample.
        padding: (B, P+L) bool, True for tokens nobody may look at; None when there are none.
        grid: (h, w), (0, 0) without image tokens.
        patches: (B, P, D) image tokens as they came in (projected features or word embeddings); None without, or when they came as `cells`.
        features: (B, F, h, w) of the image encoder; None when no photo was read.
    """

    tokens: Tensor
    positions: Tensor
    padding: Optional[Tensor]
    grid: tuple[int, int]
    patches: Optional[Tensor] = None
    features: Optional[Tensor] = None


class Encoder(nn.Module):
    """Transformer encoder over image tokens followed by text tokens.

    Args:
        embed_tokens: the (V, D) word embedding, shared with the decoder.
        seg_embed_tokens: the (C, D) class embedding, shared with the decoder.
        image_encoder: module images (B, 3, H, W) -> dict of feature maps, with `out_feature`, `out_channels`.
        sizes: widths, position tables and dropout, as in the decoder.
        layers: how many.
        side: side of the square patch grid that the position tables are meant for.
        drop_path: stochastic depth of the last layer, rising linearly from 0.
        direct_small_grids: grids of at most side*side patches read the corner of the absolute table as it is, and word
            mosaics that of the relative tables too, as the published code does; otherwise tables are resized to them.
        train_image_encoder: False keeps the image encoder and its projection frozen, without gradient or batch statistics.
    """

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        seg_embed_tokens: nn.Embedding,
        image_encoder: nn.Module,
        sizes: Sizes,
        layers: int,
        side: int,
        drop_path: float = 0.0,
        direct_small_grids: bool = False,
        train_image_encoder: bool = False,
    ):
        super().__init__()
        dim, heads, image_bucket_size = sizes.dim, sizes.heads, sizes.image_bucket_size
        if side > image_bucket_size:
            raise ValueError(f"a grid of side {side} needs image_bucket_size >= {side}, not {image_bucket_size}")
        self.heads, self.side, self.image_bucket_size, self.max_positions = heads, side, image_bucket_size, sizes.max_positions
        self.position_scale = sizes.score_scale
        self.direct_small_grids = direct_small_grids
        self.train_image_encoder = train_image_encoder
        self.embed_tokens = embed_tokens
        self.seg_embed_tokens = seg_embed_tokens
        self.layernorm_embedding = nn.LayerNorm(dim)
        self.type_embedding = nn.Embedding(2, dim)
        self.embed_images = image_encoder
        self.image_proj = nn.Linear(image_encoder.out_channels[image_encoder.out_feature], dim)
        self.patch_layernorm_embedding = nn.LayerNorm(dim)
        self.embed_positions = nn.Embedding(sizes.max_positions + 2, dim)
        self.embed_image_positions = nn.Embedding(image_bucket_size**2 + 1, dim)
        self.pos_ln = nn.LayerNorm(dim)
        self.image_pos_ln = nn.LayerNorm(dim)
        self.pos_q_linear = nn.Linear(dim, dim)
        self.pos_k_linear = nn.Linear(dim, dim)
        self.layers = nn.ModuleList(EncoderLayer(sizes, rate) for rate in drop_path_rates(drop_path, layers))
        self.layer_norm = nn.LayerNorm(dim)
        self.token_rel_pos_table_list = bias_tables(layers, 2 * sizes.token_bucket_size - 1, heads)
        self.image_rel_pos_table_list = bias_tables(layers, embeddings.num_image_buckets(image_bucket_size), heads)
        self.dropout = sizes.dropout
        self.bias_cache = BiasCache()
        self.train(self.training)

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.training else x

    def train(self, mode: bool = True) -> "Encoder":
        """As `nn.Module.train`; a frozen image encoder stays in evaluation mode, and a change of mode drops cached biases."""
        if mode != self.training:
            self.bias_cache.clear()
        self.training = mode
        for child in self.children():
            child.train(mode and (child is not self.embed_images or self.train_image_encoder))
        return self

    def embed_photo(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (B, 3, H, W), uint8 or normalised float -> feature map (B, F, h, w), projected patches (B, h*w, D)."""
        if images.dtype == torch.uint8:
            images = images.to(self.image_proj.weight.dtype) / 127.5 - 1
        with torch.set_grad_enabled(self.train_image_encoder and torch.is_grad_enabled()):
            features = self.embed_images(images)[self.embed_images.out_feature]
        return features, self.image_proj(features.flatten(2).transpose(1, 2))

    def position_vectors(self, grid: tuple[int, int], length: int) -> Tensor:
        """(h*w + L, D) normalised positions of the image tokens, then of the text tokens."""
        text = self.pos_ln(self.embed_positions.weight[:length])
        if grid[0] == 0:
            return text
        direct = self.direct_small_grids and grid[0] * grid[1] <= self.side**2 and max(grid) <= self.image_bucket_size
        image = embeddings.grid_positions(self.embed_image_positions.weight, grid, self.side, self.image_bucket_size, direct)
        return torch.cat([self.image_pos_ln(image), text])

    def attention_biases(self, grid: tuple[int, int], length: int, mosaic: bool) -> tuple[Tensor, list[AttentionBias]]:
        """Position vectors (T, D), and per layer the bias of (H, T, T): absolute, and relative inside image and text.

        Computed in float32; without gradients it is kept per grid and text length while the weights stay.
        """
        with torch.autocast(self.pos_q_linear.weight.device.type, enabled=False):
            if not may_cache():
                positions = self.position_vectors(grid, length)
                absolute = self._absolute(positions)
                return positions, [self._bias(i, absolute, grid, length, mosaic) for i in range(len(self.layers))]
            modules = [
                self.embed_positions,
                self.embed_image_positions,
                self.pos_ln,
                self.image_pos_ln,
                self.pos_q_linear,
                self.pos_k_linear,
            ]
            weights = weights_version([*modules, self.token_rel_pos_table_list, self.image_rel_pos_table_list])
            group, cache = (grid, length, mosaic), self.bias_cache
            positions = cache.get(weights, group, "positions", lambda: self.position_vectors(grid, length))
            absolute = cache.get(weights, group, "absolute", lambda: self._absolute(positions))
            biases = [
                cache.get(weights, group, i, lambda i=i: self._bias(i, absolute, grid, length, mosaic).dense())
                for i in range(len(self.layers))
            ]
            return positions, [AttentionBias(bias) for bias in biases]

    def _absolute(self, positions: Tensor) -> Tensor:
        """(H, T, T) absolute bias of the positions (T, D), the same for every layer."""
        return absolute_bias(positions, positions, self.pos_q_linear, self.pos_k_linear, self.heads, self.position_scale)

    def _bias(self, layer: int, absolute: Tensor, grid: tuple[int, int], length: int, mosaic: bool) -> AttentionBias:
        """The bias of one layer."""
        patches = grid[0] * grid[1]
        terms = [TextTerm(self.token_rel_pos_table_list[layer].weight, patches, length)]
        if patches:
            direct = self.direct_small_grids and mosaic and max(grid) <= self.side
            table = self.image_rel_pos_table_list[layer].weight
            terms.append(GridTerm(table, grid, 0, self.side, self.image_bucket_size, direct))
        return AttentionBias(absolute, tuple(terms))

    def check_length(self, length: int) -> None:
        """Raises ValueError when a text of `length` tokens does not fit the position tables."""
        if length > self.max_positions:
            raise ValueError(
                f"the source text has {length} tokens, the model holds {self.max_positions} positions; "
                "use fewer or shorter class names, or a shorter prompt"
            )

    def forward(
        self,
        src_tokens: Tensor,
        patches: Optional[Tensor] = None,
        grid: tuple[int, int] = (0, 0),
        features: Optional[Tensor] = None,
        padding: Optional[Tensor] = None,
        mosaic: bool = False,
        cells: Optional[Tensor] = None,
    ) -> EncoderOutput:
        """Encodes image tokens and text.

        Args:
            src_tokens: (B, L) dictionary ids.
            patches: (B, h*w, D) projected features of a photo, or word embeddings of a mosaic; None for text alone.
            grid: (h, w).
            features: (B, F, h, w), handed on.
            padding: (B, h*w + L) bool, True for tokens nobody may look at.
            mosaic: the patches are word embeddings.
            cells: (B, h*w) rows of `patches`, which then are (C, D) words: a mosaic that repeats them.
        """
        length = src_tokens.shape[1]
        self.check_length(length)
        x = self._embed(src_tokens, patches, cells, padding)
        positions, biases = self.attention_biases(grid, length, mosaic)
        for layer, bias in zip(self.layers, biases):
            x = layer(x, bias, padding)
        return EncoderOutput(self.layer_norm(x), positions, padding, grid, patches if cells is None else None, features)

    def _embed(
        self, src_tokens: Tensor, patches: Optional[Tensor], cells: Optional[Tensor], padding: Optional[Tensor]
    ) -> Tensor | MosaicTokens:
        """What the first layer reads: (B, P+L, D), or MosaicTokens while equal words are equal tokens; arguments of `forward`."""
        x = self.layernorm_embedding(self.embed_tokens(src_tokens) + self.type_embedding.weight[0])
        if patches is not None:
            image = self.patch_layernorm_embedding(patches + self.type_embedding.weight[1])
            if cells is None:
                x = torch.cat([image, x.to(image.dtype)], dim=1)
            else:
                tokens = MosaicTokens(image, cells, x)
                # under autocast the gradients of a word's many cells would be summed in half precision
                distinct = (self.training and self.dropout > 0) or padding is not None or torch.is_autocast_enabled(x.device.type)
                if not distinct:
                    return tokens
                x = tokens.dense()
        x = self._dropped(x)
        return x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0.0)
