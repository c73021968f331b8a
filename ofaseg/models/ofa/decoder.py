"""OFA's decoder, used in two ways: one pass over the patch grid (segmentation), or token by token (text)."""

from typing import Optional

import torch
from torch import Tensor, nn

from ofaseg.models.layers.dropout import dropout
from ofaseg.models.ofa import embeddings
from ofaseg.models.ofa.attention import DecoderLayer, Sizes, absolute_bias, bias_tables, drop_path_rates
from ofaseg.models.ofa.bias_cache import BiasCache, may_cache, weights_version
from ofaseg.models.ofa.encoder import EncoderOutput
from ofaseg.models.ofa.relative import AttentionBias, BosTerm, GridTerm, TextTerm

DECODER_INPUTS = ("encoder_output", "encoder_input", "query")
"""What the segmentation decoder reads at the grid positions; see `Decoder.segment`."""


class Decoder(nn.Module):
    """Transformer decoder with positions of text and of a patch grid.

    Args:
        embed_tokens, seg_embed_tokens: the word and class embeddings, shared with the encoder.
        sizes: widths, position tables of the text decoder and dropout, as in the encoder.
        layers: how many.
        side: side of the square grid of the segmentation positions (training image side / stride).
        drop_path: stochastic depth of the last layer, rising linearly from 0.
        bos: dictionary id of the first input.
        input_type: one of DECODER_INPUTS.
        full_context: every position sees all positions; False is causal.
        tie_projection: the class scores use `seg_embed_tokens` itself.
    """

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        seg_embed_tokens: nn.Embedding,
        sizes: Sizes,
        layers: int,
        side: int,
        drop_path: float = 0.0,
        bos: int = 0,
        input_type: str = "encoder_output",
        full_context: bool = False,
        tie_projection: bool = True,
    ):
        super().__init__()
        if input_type not in DECODER_INPUTS:
            raise ValueError(f"decoder_input_type {input_type!r} is not one of {', '.join(DECODER_INPUTS)}")
        dim, heads = sizes.dim, sizes.heads
        self.heads, self.side, self.bos, self.max_positions = heads, side, bos, sizes.max_positions
        self.position_scale = sizes.score_scale
        self.input_type, self.full_context = input_type, full_context
        self.seg_embed_tokens = seg_embed_tokens
        self.seg_projection = nn.Linear(dim, seg_embed_tokens.num_embeddings, bias=False)
        if tie_projection:
            self.seg_projection.weight = seg_embed_tokens.weight
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(dim)
        self.embed_positions = nn.Embedding(sizes.max_positions + 2, dim)
        self.embed_image_positions = nn.Embedding(sizes.image_bucket_size**2 + 1, dim)
        self.embed_seg_positions = nn.Embedding(side**2 + 1, dim)
        self.pos_ln = nn.LayerNorm(dim)
        self.image_pos_ln = nn.LayerNorm(dim)
        self.seg_pos_ln = nn.LayerNorm(dim)
        self.self_pos_q_linear = nn.Linear(dim, dim)
        self.self_pos_k_linear = nn.Linear(dim, dim)
        self.cross_pos_q_linear = nn.Linear(dim, dim)
        self.cross_pos_k_linear = nn.Linear(dim, dim)
        self.code_layernorm_embedding = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(DecoderLayer(sizes, rate) for rate in drop_path_rates(drop_path, layers))
        self.layer_norm = nn.LayerNorm(dim)
        self.token_rel_pos_table_list = bias_tables(layers, 2 * sizes.token_bucket_size - 1, heads)
        self.image_rel_pos_table_list = bias_tables(layers, embeddings.num_image_buckets(sizes.image_bucket_size), heads)
        self.seg_rel_pos_table_list = bias_tables(layers, embeddings.num_image_buckets(side), heads)
        self.dropout = sizes.dropout
        self.bias_cache = BiasCache()

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.training else x

    def train(self, mode: bool = True) -> "Decoder":
        """As `nn.Module.train`; a change of mode drops cached biases."""
        if mode != self.training:
            self.bias_cache.clear()
        return super().train(mode)

    def text_only_parameters(self) -> list[nn.Parameter]:
        """Parameters that only the text decoder reads."""
        modules = [self.embed_positions, self.pos_ln, self.token_rel_pos_table_list]
        return [parameter for module in modules for parameter in module.parameters()]

    def unused_parameters(self) -> list[nn.Parameter]:
        """Parameters of OFA's image-code decoder: part of the checkpoint layout, read by neither pass."""
        modules = [self.embed_image_positions, self.image_pos_ln, self.image_rel_pos_table_list, self.code_layernorm_embedding]
        return [parameter for module in modules for parameter in module.parameters()]

    def segment(self, encoded: EncoderOutput, all_positions: bool = False) -> Tensor:
        """Hidden states (B, h*w, D) of the patch grid, before the class projection.

        Inputs by `input_type`: ``encoder_output`` and ``encoder_input`` read bos, then the encoder's output (or its input)
        of the patches in raster order, so that position i predicts patch i from the patches before it (all patches with
        `full_context`). ``query`` is an extension: every cell of the grid reads the bos embedding and sees all cells, and
        the patches reach it through cross-attention alone. With `all_positions` the discarded last position of the first
        two is returned too: (B, h*w + 1, D).
        """
        patches = encoded.grid[0] * encoded.grid[1]
        batch = encoded.tokens.shape[0]
        bos = self.embed_tokens.weight[self.bos].expand(batch, 1, -1)
        if self.input_type == "query":
            return self._run_grid(bos.expand(-1, patches, -1), encoded, first=1, causal=False)
        content = encoded.tokens[:, :patches] if self.input_type == "encoder_output" else encoded.patches
        x = torch.cat([bos.to(content.dtype), content], dim=1)
        causal = not self.full_context
        if causal and not all_positions:
            x = x[:, :patches]
        hidden = self._run_grid(x, encoded, first=0, causal=causal)
        return hidden if all_positions else hidden[:, :patches]

    def _run_grid(self, x: Tensor, encoded: EncoderOutput, first: int, causal: bool) -> Tensor:
        """The layers over x (B, T, D) at grid positions `first` .. `first`+T-1; position 0 is bos, 1 the first cell."""
        self_biases, cross = self._grid_biases(x.shape[1], encoded, first, causal)
        x = self._dropped(self.layernorm_embedding(x))
        for layer, bias in zip(self.layers, self_biases):
            x = layer(x, encoded.tokens, bias, cross, memory_padding=encoded.padding)
        return self.layer_norm(x)

    def _grid_biases(self, length: int, encoded: EncoderOutput, first: int, causal: bool) -> tuple[list[AttentionBias], AttentionBias]:
        """Per layer the bias of (H, T, T) over T = `length` grid positions from `first` on, and the cross bias of (H, T, S).

        Computed in float32; without gradients it is kept per grid and text length while the weights stay.
        """
        grid, layers = encoded.grid, range(len(self.layers))
        with torch.autocast(self.seg_pos_ln.weight.device.type, enabled=False):
            if not may_cache():
                positions = self._grid_positions(length, grid, first)
                own, cross = self._self_bias(positions), self._cross_bias(positions, encoded.positions)
                return [self._grid_bias(i, own, grid, first, causal) for i in layers], AttentionBias(cross)
            modules = [self.embed_seg_positions, self.seg_pos_ln, self.seg_rel_pos_table_list, self.self_pos_q_linear]
            weights = weights_version([*modules, self.self_pos_k_linear, self.cross_pos_q_linear, self.cross_pos_k_linear])
            # the encoder's positions are cached there: while they are the same tensor, they have the same values
            group, cache = (grid, length, first, encoded.positions.shape[0]), self.bias_cache
            source = cache.get(weights, group, "source", lambda: encoded.positions)
            if source is not encoded.positions:
                cache.clear()
            positions = cache.get(weights, group, "positions", lambda: self._grid_positions(length, grid, first))
            own = cache.get(weights, group, "own", lambda: self._self_bias(positions))
            cross = cache.get(weights, group, "cross", lambda: self._cross_bias(positions, encoded.positions))
            biases = [cache.get(weights, group, i, lambda i=i: self._grid_bias(i, own, grid, first, causal).dense()) for i in layers]
            return [AttentionBias(bias, causal=causal) for bias in biases], AttentionBias(cross)

    def _grid_positions(self, length: int, grid: tuple[int, int], first: int) -> Tensor:
        """(length, D) normalised positions from `first` on: 0 is bos, then the cells of the grid."""
        cells = embeddings.grid_positions(self.embed_seg_positions.weight, grid, self.side, self.side)
        return self.seg_pos_ln(torch.cat([self.embed_seg_positions.weight[:1], cells])[first : first + length])

    def _self_bias(self, positions: Tensor) -> Tensor:
        """(H, T, T) absolute bias of the decoder's positions (T, D) to themselves."""
        return absolute_bias(positions, positions, self.self_pos_q_linear, self.self_pos_k_linear, self.heads, self.position_scale)

    def _cross_bias(self, positions: Tensor, source: Tensor) -> Tensor:
        """(H, T, S) absolute bias of the decoder's positions (T, D) to the encoder's (S, D)."""
        return absolute_bias(positions, source, self.cross_pos_q_linear, self.cross_pos_k_linear, self.heads, self.position_scale)

    def _grid_bias(self, layer: int, absolute: Tensor, grid: tuple[int, int], first: int, causal: bool) -> AttentionBias:
        """The bias of one layer over grid positions from `first` on."""
        table = self.seg_rel_pos_table_list[layer].weight
        start = 1 - first  # bos comes first
        cells = absolute.shape[1] - start
        terms = [GridTerm(table, grid, start, self.side, self.side, cells=cells)]
        if start:
            terms.append(BosTerm(table))
        return AttentionBias(absolute, tuple(terms), causal)

    def decode_text(self, prev_output_tokens: Tensor, encoded: EncoderOutput, pad: Optional[int] = None) -> Tensor:
        """Hidden states (B, T, D) of OFA's ordinary causal text decoder over `prev_output_tokens` (B, T).

        Raises ValueError when the text is longer than the position tables.
        """
        length = prev_output_tokens.shape[1]
        if length > self.max_positions:
            raise ValueError(f"the target text has {length} tokens, the model holds {self.max_positions} positions; shorten it")
        padding = None if pad is None else prev_output_tokens.eq(pad)
        self_biases, cross = self._text_biases(length, encoded.positions)
        x = self._dropped(self.layernorm_embedding(self.embed_tokens(prev_output_tokens)))
        for layer, bias in zip(self.layers, self_biases):
            x = layer(x, encoded.tokens, bias, cross, padding, encoded.padding)
        return self.layer_norm(x)

    def _text_biases(self, length: int, source: Tensor) -> tuple[list[AttentionBias], AttentionBias]:
        """Per layer the causal bias of (H, T, T) over a text of T = `length`, and the cross bias to positions `source` (S, D)."""
        with torch.autocast(source.device.type, enabled=False):
            positions = self.pos_ln(self.embed_positions.weight[:length])
            own, cross = self._self_bias(positions), self._cross_bias(positions, source)
            terms = [TextTerm(table.weight, 0, length) for table in self.token_rel_pos_table_list]
            return [AttentionBias(own, (term,), causal=True) for term in terms], AttentionBias(cross)
