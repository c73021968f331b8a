"""Fusioner: frozen image and text towers, a transformer over patches and class names together, an upsampling decoder ("Open-vocabulary
Semantic Segmentation with Frozen Vision-Language Models", BMVC 2022).

Only fusion and decoder are trained, and only they are saved; the towers come from a local file and are known by their sha256.
"""

from dataclasses import dataclass, field
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from fairseq.dataclass import ChoiceEnum
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor

from ofaseg.models import fusioner_state
from ofaseg.models.architectures import named_config, register_architectures
from ofaseg.models.clip_towers import CLIP_SIZES, ClipSizes
from ofaseg.models.frozen_towers import CLIP, KINDS, TABLE, TEXT_TOWERS, FrozenTowers, ignore_missing_towers
from ofaseg.models.image_encoders.frozen import NAMED
from ofaseg.models.layers.joint_fusion import JointFusion
from ofaseg.models.layers.subclass_fusion import NAME_RULES, SubclassPrompts, mean_vectors, padded_subclasses
from ofaseg.models.layers.upsampled_cosines import cosine_maps, upsampled_cosines
from ofaseg.models.layers.upsampling_decoder import UpsamplingDecoder
from ofaseg.models.prompted_segmenter import PromptedSegmenter
from ofaseg.models.state import StateUpgrade
from ofaseg.models.text_encoders.text_table import NameTokenizer
from ofaseg.structures import DenseOutput

PIXEL_STATISTICS = {
    "pascal": ((0.4554, 0.4298, 0.3955), (0.1181, 0.1189, 0.1338)),
    "coco": ((0.4650, 0.4357, 0.3973), (0.1152, 0.1153, 0.1352)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Name -> mean and deviation of RGB in 0..1. The published runs use pascal and coco, the data set's own; their deviations are less
than half of those that CLIP was trained with. half brings photos to -1..1 (MobileNetV2)."""


@dataclass
class FusionerConfig(ClipSizes):
    """Options of Fusioner; the defaults are `fusioner_vit_b16`."""

    image_tower: str = field(
        default="clip",
        metadata={"help": f"clip, {', '.join(NAMED)}, or a model of timm: vit_base_patch16_224 (DINO, MoCo v3, MAE), mobilenetv2_100, ..."},
    )
    text_tower: str = field(default="clip", metadata={"help": f"{', '.join(TEXT_TOWERS)}; table with --text-embeddings"})
    clip_checkpoint: str = field(default="", metadata={"help": "file of CLIP, OpenAI's or open_clip's, for the towers that are clip"})
    image_checkpoint: str = field(default="", metadata={"help": "file of the image tower's weights, where it is not CLIP's"})
    text_checkpoint: str = field(default="", metadata={"help": "file of the text tower's weights, where it is a BERT"})
    text_embeddings: str = field(
        default="", metadata={"help": "names and their text vectors for the text tower 'table': .npz, .npy with .names.txt, .safetensors"}
    )
    random_towers: bool = field(default=False, metadata={"help": "leave towers without a file at random weights: for tests and benchmarks"})
    bert_vocab_size: int = field(default=0, metadata={"help": "rows of BERT's word embedding (0: the tokenizer's)"})
    tower_precision: ChoiceEnum(["none", "bf16"]) = field(default="none", metadata={"help": "what the towers compute in: none is float32"})
    pixel_statistics: str = field(
        default="pascal", metadata={"help": f"mean and deviation that photos are normalised with: {', '.join(PIXEL_STATISTICS)}"}
    )
    fusion_width: int = field(default=512, metadata={"help": "width of fusion and decoder"})
    fusion_layers: int = field(default=12, metadata={"help": "blocks of the fusion"})
    fusion_heads: int = field(default=8, metadata={"help": "attention heads of the fusion"})
    fusion_dropout: float = field(default=0.0, metadata={"help": "dropout in the fusion"})
    fusion_drop_path: float = field(default=0.0, metadata={"help": "share of samples that pass the last block by, in training"})
    aligned_start: bool = field(
        default=False,
        metadata={"help": "photo and text vectors start with one projection, queries as keys: for towers of one space (CLIP, SimSeg)"},
    )
    cosine_temperature: float = field(default=0.07, metadata={"help": "cosines of pixels and classes are divided by it"})
    plain_cosine: bool = field(
        default=False, metadata={"help": "upsample features before the cosine, as published, instead of the same from few maps"}
    )


FUSION_NANO = dict(fusion_width=64, fusion_layers=2, fusion_heads=4)
ARCHITECTURES = {
    "fusioner_vit_b16": CLIP_SIZES["vit_b_16"],
    "fusioner_vit_b32": CLIP_SIZES["vit_b_32"],
    "fusioner_vit_l14": CLIP_SIZES["vit_l_14"],
    "fusioner_nano": CLIP_SIZES["nano"] | FUSION_NANO,
}
"""Named architectures: what differs from the defaults of FusionerConfig."""


def architecture_config(name: str, **options) -> FusionerConfig:
    """The configuration of a named architecture, with `options` on top. Raises ValueError listing the known names."""
    return named_config(FusionerConfig, ARCHITECTURES, name, options)


@register_model("fusioner", dataclass=FusionerConfig)
class Fusioner(PromptedSegmenter, BaseFairseqModel):
    """Frozen towers, joint fusion, decoder, cosine head.

    The towers start without weights: `ofaseg.checkpoints.fusioner.load_towers` reads their files, a published checkpoint brings them.

    Args:
        config: sizes and options.
        prompts: for each class the token ids of its prompts, see `set_classes`; None for no classes yet.
        pad: id of padding.

    Attributes:
        towers: `FrozenTowers`.
        grid_stride: pixels per patch.

    Raises:
        ValueError: an unknown tower or normalisation, an aligned start of towers of different widths, or open_clip_torch is missing.
        CheckpointError: the table of text vectors cannot be read.
    """

    text_is_frozen = True

    def __init__(self, config: FusionerConfig, prompts: Optional[Sequence] = None, pad: int = 0):
        super().__init__()
        if config.pixel_statistics not in PIXEL_STATISTICS:
            raise ValueError(f"unknown pixel_statistics {config.pixel_statistics!r}; known: {', '.join(PIXEL_STATISTICS)}")
        self.config = config
        bf16 = str(config.tower_precision) == "bf16"
        self.towers = FrozenTowers(config.image_tower, config.text_tower, config, config.text_embeddings, config.bert_vocab_size, bf16)
        image, text = self.towers.image, self.towers.text
        self.fusion = JointFusion(
            image.dim, text.dim, config.fusion_width, config.fusion_layers, config.fusion_heads,
            config.fusion_dropout, config.fusion_drop_path,
        )  # fmt: skip
        if config.aligned_start:
            self.fusion.start_aligned()
        self.decoder = UpsamplingDecoder(config.fusion_width)
        for parameter in self.decoder.parameters():
            parameter.param_group = "decoder"  # which has a learning rate of its own (--optimizer fusioner_adamw)
        self.cosines = cosine_maps if config.plain_cosine else upsampled_cosines
        self.grid_stride = image.stride
        self.register_load_state_dict_post_hook(ignore_missing_towers("towers."))
        self.set_up(prompts, pad, *PIXEL_STATISTICS[config.pixel_statistics])

    @classmethod
    def build_model(cls, cfg: FusionerConfig, task) -> "Fusioner":
        """Builds the model for a task with a `text_tokenizer` and `class_prompts`.

        Raises:
            ValueError: the tokenizer has other ids than the text tower.
        """
        if not cfg.bert_vocab_size and cfg.text_tower not in (CLIP, TABLE):
            cfg.bert_vocab_size = len(task.text_tokenizer)
        model = cls(cfg, task.class_prompts, task.text_tokenizer.pad)
        if len(task.text_tokenizer) != model.towers.text.vocab_size:
            raise ValueError(
                f"the text tokenizer has {len(task.text_tokenizer)} entries, the text tower {cfg.text_tower} "
                f"{model.towers.text.vocab_size}; CLIP needs --text-tokenizer clip_bpe, BERT wordpiece, a table that of its own names"
            )
        return model

    # -- passes ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        image: Tensor,
        text: Optional[Tensor] = None,
        size: Optional[tuple[int, int]] = None,
        class_ids: Optional[Tensor] = None,
        tokens: Optional[Tensor] = None,
    ) -> DenseOutput:
        """Scores photos for a list of classes, which are judged together.

        Args:
            image: (B, 3, H, W) photos, uint8, or float already normalised; H and W multiples of `grid_stride`.
            text: (K, Dt) unit vectors of the classes, or (B, K, Dt) of each photo's own; None for `class_embeddings()`.
            size: (h, w) of the scores; None for (H, W).
            class_ids: (B, K) the model's classes that each photo is asked about; None for all of them.
            tokens: (B, H / stride * W / stride, Dv) what the image tower said of these photos before; None to ask it.

        Returns: class_logits (B, K, h, w) float32, cosine / temperature: above 0 is foreground; features (B, Dv, H / stride, W / stride)
            unit vectors of the image tower.

        Raises:
            ValueError: a side is no multiple of the patch, the towers have no weights yet, or the model has no classes.
        """
        if class_ids is not None:
            text = self.class_embeddings()[class_ids]
        grid = (image.shape[2] // self.grid_stride, image.shape[3] // self.grid_stride)
        if tokens is None:
            tokens, grid = self.image_tokens(image)
        return self.from_tokens(tokens, grid, text, size or tuple(image.shape[2:]))

    def image_tokens(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Photos (B, 3, H, W) as `forward` takes them -> vectors of the image tower (B, h * w, Dv), and (h, w)."""
        return self.towers.image_tokens(self.normalised(image))

    def from_tokens(self, tokens: Tensor, grid: tuple[int, int], text: Optional[Tensor], size: tuple[int, int]) -> DenseOutput:
        """As `forward`, from the image tower's vectors (B, h * w, Dv) and their grid (h, w), which may have been kept."""
        patches, classes = self.fusion(tokens, self.class_embeddings() if text is None else text)
        cosines = self.cosines(self.decoder(patches, grid), classes, size)
        return DenseOutput(cosines / self.config.cosine_temperature, tokens.transpose(1, 2).unflatten(2, grid))

    # -- classes ---------------------------------------------------------------------------------------------------

    @property
    def text_dim(self) -> int:
        """Dt."""
        return self.towers.text.dim

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (n, L) -> (n, Dt) unit vectors of the frozen text tower."""
        return self.towers.text_vectors(input_ids, attention_mask)

    def text_state(self) -> dict[str, Tensor]:
        """The weights of the text tower, without CLIP's scale of cosines."""
        return {key: value for key, value in self.towers.text.state_dict().items() if value.ndim}

    def text_options(self) -> str:
        """Weights alone say neither the tower's kind nor activation, heads and precision."""
        cfg = self.config
        return f"{cfg.text_tower} plain_gelu={bool(cfg.plain_gelu)} text_heads={cfg.text_heads} {cfg.tower_precision}"

    def name_tokenizer(self) -> Optional[NameTokenizer]:
        """The tokenizer of a table of text vectors; None where the text tower reads words."""
        return None if self.towers.table is None else NameTokenizer(self.towers.table)

    def set_subclasses(self, subclasses: Optional[SubclassPrompts]) -> None:
        """Makes a class the mean over its finer names (rules `NAME_RULES`): the fusion takes one vector per class, before it sees a photo.

        Raises:
            ValueError: another rule, another number of classes, or a class without subclasses.
        """
        if subclasses is not None and subclasses.rule not in NAME_RULES:
            raise ValueError(f"fusion {subclasses.rule}: Fusioner takes one vector per class; use {' or '.join(NAME_RULES)}")
        super().set_subclasses(subclasses)

    def class_embeddings(self) -> Tensor:
        """(K, Dt) unit vectors of the class names, or of their finer names. Raises ValueError: the model has no classes."""
        names = super().class_embeddings()
        if self.subclasses is None:
            return names
        vectors, mask = padded_subclasses(self.subclass_embeddings(), self.subclasses.counts)
        return F.normalize(mean_vectors(vectors, mask, names, self.subclasses.rule), dim=-1)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def tower_files(self) -> dict[str, str]:
        """Tower ("image", "text") -> the file its weights come from; without a table of text vectors, which is read at once."""
        cfg = self.config
        own = {"image": (cfg.image_tower, cfg.image_checkpoint), "text": (cfg.text_tower, cfg.text_checkpoint)}
        kinds = KINDS if self.towers.table is None else ("image",)
        return {kind: cfg.clip_checkpoint if own[kind][0] == CLIP else own[kind][1] for kind in kinds}

    def upgrade_state(self, state_dict: dict) -> StateUpgrade:
        """Makes a state dict loadable, in place: one of ours, or a published one, whose towers are loaded here.

        Raises:
            CheckpointError: it does not fit, or was trained with other towers.
        """
        self.forget_text_vectors()
        made_of = {kind: file or "random start values" for kind, file in self.tower_files().items()}
        return fusioner_state.upgrade_state(state_dict, self.state_dict(), self.towers, made_of)

    def upgrade_state_dict_named(self, state_dict: dict, name: str) -> None:
        """fairseq's hook before strict loading."""
        self.upgrade_state(state_dict)

    @torch.no_grad()
    def official_state(self) -> dict[str, Tensor]:
        """The weights in the published layout. Raises CheckpointError when a tower is not CLIP's."""
        return fusioner_state.to_official(self.state_dict(), self.towers)


register_architectures("fusioner", ARCHITECTURES)
