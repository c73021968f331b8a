"""IFSeg: OFA's encoder-decoder speaking segmentation tokens (CVPR 2023, "IFSeg").

A photo becomes patch features, or, image-free, a mosaic of class-word embeddings stands in their place; the decoder gives
every patch a vector, and its products with the class embeddings are the class scores.
"""

from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from ofaseg.models.architectures import named_config, register_architectures
from ofaseg.models.image_encoders import build_image_encoder
from ofaseg.models.ofa.attention import Sizes
from ofaseg.models.ofa.decoder import DECODER_INPUTS, Decoder
from ofaseg.models.ofa.embeddings import mean_embeddings, pad_token_lists
from ofaseg.models.ofa.encoder import Encoder, EncoderOutput
from ofaseg.models.ofa.state import upgrade_official_state
from ofaseg.models.segmenter import Segmenter
from ofaseg.models.state import StateUpgrade
from ofaseg.structures import DenseOutput


@dataclass
class SegOFAConfig(FairseqDataclass):
    """Options of SegOFA; the defaults are `segofa_base` as the published IFSeg runs use it."""

    encoder_embed_dim: int = field(default=768, metadata={"help": "width D of encoder and decoder"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "width of the feed-forward layers"})
    encoder_layers: int = field(default=6, metadata={"help": "layers of the encoder"})
    decoder_layers: int = field(default=6, metadata={"help": "layers of the decoder"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "attention heads H"})
    attn_scale_factor: float = field(default=2.0, metadata={"help": "attention scores are divided by sqrt(D / H * this)"})
    image_encoder: str = field(default="resnet101", metadata={"help": "resnet50, resnet101, resnet152 or conv_stem"})
    conv_stem_stride: int = field(default=8, metadata={"help": "pixels per patch of conv_stem: 8 or 4"})
    patch_image_size: int = field(
        default=512, metadata={"help": "side of training images in pixels; sets the segmentation position tables"}
    )
    orig_patch_image_size: int = field(default=512, metadata={"help": "image side that the encoder's image positions are meant for"})
    image_bucket_size: int = field(default=42, metadata={"help": "side of the largest grid the image position tables hold"})
    token_bucket_size: int = field(default=256, metadata={"help": "buckets of relative text positions in each direction"})
    max_source_positions: int = field(default=1024, metadata={"help": "longest text in tokens"})
    num_bins: int = field(default=1000, metadata={"help": "location symbols in the dictionary"})
    code_dict_size: int = field(default=8192, metadata={"help": "image-code symbols in the dictionary"})
    decoder_input_type: ChoiceEnum(list(DECODER_INPUTS)) = field(
        default="encoder_output",
        metadata={
            "help": "what the decoder reads at patch positions; 'query' (bos everywhere, patches through cross-attention) is an extension"
        },
    )
    full_context_alignment: bool = field(default=False, metadata={"help": "let every decoder position see all patches; default is causal"})
    untie_seg_projection: bool = field(
        default=False, metadata={"help": "give the class scores their own weights instead of the class embeddings"}
    )
    random_class_embeddings: bool = field(
        default=False, metadata={"help": "start class embeddings at random instead of from their names' words"}
    )
    artificial_noise: float = field(
        default=0.0,
        metadata={"help": "training noise on artificial word inputs, in standard deviations of the word embeddings (0: published)"},
    )
    direct_small_grids: bool = field(
        default=False,
        metadata={"help": "read grids below the table size from its corner, as the published code does, instead of resizing the table"},
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout of embeddings and residual branches"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention probabilities"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout after the GELU"})
    encoder_drop_path_rate: float = field(default=0.1, metadata={"help": "stochastic depth of the last encoder layer (linear from 0)"})
    decoder_drop_path_rate: float = field(default=0.1, metadata={"help": "stochastic depth of the last decoder layer (linear from 0)"})
    resnet_drop_path_rate: float = field(default=0.0, metadata={"help": "stochastic depth of the last block of each ResNet stage"})
    train_image_encoder: bool = field(
        default=False, metadata={"help": "train the image encoder and its projection (published runs freeze them)"}
    )
    frozen_batch_norm: bool = field(
        default=False, metadata={"help": "with --train-image-encoder: keep batch statistics and affine maps fixed"}
    )
    train_token_embedding: bool = field(default=False, metadata={"help": "train the word embeddings (published runs freeze them)"})
    train_class_embedding: bool = field(default=False, metadata={"help": "train the class embeddings (published runs freeze them)"})
    train_text_decoder: bool = field(default=False, metadata={"help": "train the parameters only the text decoder reads (captions)"})
    freeze_encoder_layers: int = field(default=0, metadata={"help": "freeze the encoder's embeddings and its first N layers"})


ARCHITECTURES = {
    "segofa_nano": dict(
        encoder_embed_dim=128, encoder_ffn_embed_dim=256, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        image_encoder="conv_stem", patch_image_size=96, orig_patch_image_size=96, image_bucket_size=24, max_source_positions=512,
        num_bins=12, code_dict_size=0, dropout=0.0, encoder_drop_path_rate=0.0, decoder_drop_path_rate=0.0,
    ),
    "segofa_tiny": dict(
        encoder_embed_dim=256, encoder_ffn_embed_dim=1024, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4,
        image_encoder="resnet50",
    ),
    "segofa_medium": dict(
        encoder_embed_dim=512, encoder_ffn_embed_dim=2048, encoder_layers=4, decoder_layers=4, encoder_attention_heads=8,
        image_encoder="resnet101",
    ),
    "segofa_base": dict(),
    "segofa_large": dict(
        encoder_embed_dim=1024, encoder_ffn_embed_dim=4096, encoder_layers=12, decoder_layers=12, encoder_attention_heads=16,
        image_encoder="resnet152",
    ),
    "segofa_huge": dict(
        encoder_embed_dim=1280, encoder_ffn_embed_dim=5120, encoder_layers=24, decoder_layers=12, encoder_attention_heads=16,
        image_encoder="resnet152",
    ),
}  # fmt: skip
"""Named architectures: what differs from the defaults of SegOFAConfig."""


def architecture_config(name: str, **options) -> SegOFAConfig:
    """The configuration of a named architecture, with `options` on top.

    Raises:
        ValueError: unknown architecture; the message lists the known ones.
    """
    return named_config(SegOFAConfig, ARCHITECTURES, name, options)


@register_model("segofa", dataclass=SegOFAConfig)
class SegOFA(Segmenter, BaseFairseqModel):
    """OFA with segmentation tokens.

    Args:
        config: sizes and options.
        vocab_rows: rows of the word embedding; for a dictionary that ends in C+1 segmentation symbols its length minus C.
        class_token_ids: the dictionary ids of each of the C class names.
        pad, bos: dictionary ids.

    Attributes:
        grid_stride: pixels per patch.
    """

    def __init__(self, config: SegOFAConfig, vocab_rows: int, class_token_ids: list[list[int]], pad: int = 1, bos: int = 0):
        super().__init__()
        self.config, self.pad = config, pad
        dim = config.encoder_embed_dim
        embed_tokens = nn.Embedding(vocab_rows, dim, padding_idx=pad)
        self.register_buffer("class_token_ids", self._checked_tokens(class_token_ids, vocab_rows), persistent=False)
        self.register_buffer("name_shares", None, persistent=False)
        seg_embed_tokens = nn.Embedding(len(class_token_ids), dim)
        images = build_image_encoder(
            config.image_encoder,
            frozen_batch_norm=config.frozen_batch_norm or not config.train_image_encoder,
            drop_path=config.resnet_drop_path_rate,
            stride=config.conv_stem_stride,
        )
        self.grid_stride = images.out_strides[images.out_feature]
        sizes = Sizes(
            dim=dim, ffn_dim=config.encoder_ffn_embed_dim, heads=config.encoder_attention_heads, scale_factor=config.attn_scale_factor,
            image_bucket_size=config.image_bucket_size, token_bucket_size=config.token_bucket_size,
            max_positions=config.max_source_positions, dropout=config.dropout,
            attention_dropout=config.attention_dropout, activation_dropout=config.activation_dropout,
        )  # fmt: skip
        self.encoder = Encoder(
            embed_tokens, seg_embed_tokens, images, sizes, layers=config.encoder_layers,
            side=config.orig_patch_image_size // self.grid_stride, drop_path=config.encoder_drop_path_rate,
            direct_small_grids=config.direct_small_grids, train_image_encoder=config.train_image_encoder,
        )  # fmt: skip
        self.decoder = Decoder(
            embed_tokens, seg_embed_tokens, sizes, layers=config.decoder_layers, side=config.patch_image_size // self.grid_stride,
            drop_path=config.decoder_drop_path_rate, bos=bos, input_type=str(config.decoder_input_type),
            full_context=config.full_context_alignment, tie_projection=not config.untie_seg_projection,
        )  # fmt: skip
        self.apply(_bert_init)
        if not config.random_class_embeddings:
            self.init_class_embeddings()
        self._freeze()

    @classmethod
    def build_model(cls, cfg: SegOFAConfig, task) -> "SegOFA":
        """Builds the model for a task with `source_dictionary` and `class_token_ids`."""
        dictionary, class_token_ids = task.source_dictionary, task.class_token_ids
        return cls(cfg, len(dictionary) - len(class_token_ids), class_token_ids, dictionary.pad(), dictionary.bos())

    def max_positions(self) -> None:
        """No limit for fairseq to filter samples by; a text that is too long is an error of the encoder."""
        return None

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_token_ids if self.name_shares is None else self.name_shares)

    def _checked_tokens(self, class_token_ids: list[list[int]], vocab_rows: int) -> Tensor:
        """(C, L) padded ids. Raises ValueError for an empty list or name, or an id outside the vocabulary."""
        tokens = pad_token_lists(class_token_ids, self.pad)
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_rows:
            raise ValueError(f"class token ids lie in {int(tokens.min())}..{int(tokens.max())}, the vocabulary has ids 0..{vocab_rows - 1}")
        return tokens

    def _freeze(self) -> None:
        """Takes the gradient from everything the configuration does not train."""
        config, encoder, decoder = self.config, self.encoder, self.decoder
        frozen = decoder.unused_parameters()
        if not config.train_text_decoder:
            frozen += decoder.text_only_parameters()
        if not config.train_image_encoder:
            frozen += [*encoder.embed_images.parameters(), *encoder.image_proj.parameters()]
        if not config.train_token_embedding:
            frozen.append(encoder.embed_tokens.weight)
        if not config.train_class_embedding:
            frozen.append(encoder.seg_embed_tokens.weight)
        if config.freeze_encoder_layers:
            modules = [
                encoder.layernorm_embedding, encoder.type_embedding, encoder.patch_layernorm_embedding, encoder.embed_positions,
                encoder.embed_image_positions, encoder.pos_ln, encoder.image_pos_ln, encoder.pos_q_linear, encoder.pos_k_linear,
                *encoder.layers[: config.freeze_encoder_layers],
                *encoder.token_rel_pos_table_list[: config.freeze_encoder_layers],
                *encoder.image_rel_pos_table_list[: config.freeze_encoder_layers],
            ]  # fmt: skip
            if config.freeze_encoder_layers >= config.encoder_layers:
                modules.append(encoder.layer_norm)
            frozen += [parameter for module in modules for parameter in module.parameters()]
        for parameter in frozen:
            parameter.requires_grad_(False)

    # -- classes ---------------------------------------------------------------------------------------------------

    def class_words(self) -> Tensor:
        """(C, D) mean word embedding of each class name, or over its names: what artificial images are made of."""
        return self._class_words(self.encoder.embed_tokens.weight)

    def _class_words(self, weight: Tensor) -> Tensor:
        names = mean_embeddings(weight, self.class_token_ids.to(weight.device), self.pad)
        return names if self.name_shares is None else self.name_shares.to(names) @ names

    def class_embeddings(self) -> Tensor:
        """(C, D) rows that the class scores are products with."""
        return self.decoder.seg_projection.weight

    @torch.no_grad()
    def init_class_embeddings(self) -> None:
        """Sets the class embeddings, and an untied projection, to the mean word embedding of each name."""
        words = self.class_words()
        self.encoder.seg_embed_tokens.weight.copy_(words)
        self.decoder.seg_projection.weight.copy_(words)

    @torch.no_grad()
    def set_classes(self, class_token_ids: list[list[int]]) -> None:
        """Replaces the class list by another one of any length, with class embeddings made from the names.

        Raises:
            ValueError: an empty list or name, or an id outside the vocabulary.
        """
        old = self.encoder.seg_embed_tokens.weight
        self.name_shares = None
        self.class_token_ids = self._checked_tokens(class_token_ids, len(self.encoder.embed_tokens.weight)).to(old.device)
        shared = self.encoder.seg_embed_tokens
        tied = self.decoder.seg_projection.weight is old
        shared.num_embeddings = self.decoder.seg_projection.out_features = self.num_classes
        shared.weight = nn.Parameter(self.class_words().to(old.dtype), requires_grad=old.requires_grad)
        self.decoder.seg_projection.weight = shared.weight if tied else nn.Parameter(shared.weight.detach().clone())

    @torch.no_grad()
    def set_class_words(self, names: list[list[list[int]]]) -> None:
        """Gives each of the C classes several names: its word vector is the mean over them (subclasses).

        Args:
            names: for each class at least one name, each the token ids of its words. The class list stays: the source text is
                that of the classes, only the vectors of artificial images and of the class scores change.

        Raises:
            ValueError: another number of classes, a class without a name, an empty name, or an id outside the vocabulary.
        """
        counts = [len(of_class) for of_class in names]
        if len(counts) != self.num_classes or min(counts) == 0:
            raise ValueError(f"{len(counts)} classes of {counts} names for a model of {self.num_classes} classes; each needs a name")
        words = self.encoder.embed_tokens.weight
        tokens = self._checked_tokens([ids for of_class in names for ids in of_class], len(words))
        self.class_token_ids = tokens.to(words.device)
        owners = torch.repeat_interleave(torch.tensor(counts))
        shares = F.one_hot(owners, len(counts)).T / torch.tensor(counts)[:, None]
        self.name_shares = shares.to(words)
        if not self.config.random_class_embeddings:
            self.init_class_embeddings()

    # -- passes ----------------------------------------------------------------------------------------------------

    def encode(
        self,
        src_tokens: Tensor,
        patch_images: Optional[Tensor] = None,
        class_maps: Optional[Tensor] = None,
        patch_masks: Optional[Tensor] = None,
        padded: bool = False,
    ) -> EncoderOutput:
        """Encoder output; arguments as in `forward`. With `padded`, pad tokens of `src_tokens` are hidden."""
        if patch_images is not None and class_maps is not None:
            raise ValueError("give either patch_images or class_maps: a batch is either photos or artificial")
        patches, cells, features, grid = None, None, None, (0, 0)
        if patch_images is not None:
            features, patches = self.encoder.embed_photo(patch_images)
            grid = tuple(features.shape[2:])
        elif class_maps is not None:
            (patches, cells), grid = self._mosaic(class_maps), tuple(class_maps.shape[1:])
        padding = None
        if padded or patch_masks is not None:
            batch, count = len(src_tokens), grid[0] * grid[1]
            text = src_tokens.eq(self.pad)
            hidden = text.new_zeros(batch, count) if patch_masks is None else ~patch_masks.view(batch, 1).expand(batch, count)
            padding = torch.cat([hidden, text], dim=1)
        return self.encoder(src_tokens, patches, grid, features, padding, mosaic=class_maps is not None, cells=cells)

    def _mosaic(self, class_maps: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        """Class maps (B, h, w) of ids 0..C-1 as words (C, D) and the cells (B, h*w) that repeat them.

        With noise while training, or for a decoder that reads the cells: as word embeddings (B, h*w, D), and None.
        """
        words, cells = self.class_words(), class_maps.flatten(1)
        noise = self.config.artificial_noise if self.training else 0.0
        if noise <= 0 and str(self.config.decoder_input_type) != "encoder_input":
            return words, cells
        patches = F.embedding(cells, words)
        if noise > 0:
            patches = patches + torch.randn_like(patches) * (noise * words.detach().std(unbiased=False))
        return patches, None

    def forward(
        self,
        src_tokens: Tensor,
        patch_images: Optional[Tensor] = None,
        class_maps: Optional[Tensor] = None,
        prev_output_tokens: Optional[Tensor] = None,
        patch_masks: Optional[Tensor] = None,
    ):
        """Segments a batch, or predicts text.

        Args:
            src_tokens: (B, L) dictionary ids; for segmentation without padding (every sample has the same text).
            patch_images: (B, 3, H, W) photos, uint8, or float already normalised to -1..1.
            class_maps: (B, h, w) class ids 0..C-1 laid out as an artificial image (image-free training).
            prev_output_tokens: (B, T) selects the text decoder; right-padded texts are fine, in `src_tokens` too.
            patch_masks: (B,) bool, False hides the image of a sample.

        Returns: DenseOutput with class_logits (B, C, h, w); with `prev_output_tokens`, token logits (B, T, V).
        """
        encoded = self.encode(src_tokens, patch_images, class_maps, patch_masks, padded=prev_output_tokens is not None)
        if prev_output_tokens is not None:
            hidden = self.decoder.decode_text(prev_output_tokens, encoded, self.pad)
            return F.linear(hidden, self.encoder.embed_tokens.weight)
        if encoded.grid[0] == 0:
            raise ValueError("segmentation needs patch_images or class_maps")
        logits = self.decoder.seg_projection(self.decoder.segment(encoded))
        return DenseOutput(logits.transpose(1, 2).unflatten(2, encoded.grid), encoded.features)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def upgrade_state(self, state_dict: dict) -> StateUpgrade:
        """Makes an official OFA or IFSeg state dict loadable, in place; raises CheckpointError when it does not fit."""

        def class_table(words: Tensor) -> Tensor:
            return self._class_words(words.float()).to(words)

        return upgrade_official_state(state_dict, self.state_dict(), class_table)

    def upgrade_state_dict_named(self, state_dict: dict, name: str) -> None:
        """fairseq's hook before strict loading."""
        self.upgrade_state(state_dict)


def _bert_init(module: nn.Module) -> None:
    """Linear and embedding weights N(0, 0.02), biases and the padding row 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])


register_architectures("segofa", ARCHITECTURES)
