"""SimSeg: a dual encoder whose image and text vectors are pooled from local tokens (CVPR 2023, "A Simple Framework for
Text-Supervised Semantic Segmentation").

Trained on captions alone; the cosine of a patch and a class name is the class map.
"""

from dataclasses import dataclass, field
from typing import Optional, Sequence

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from ofaseg.models.architectures import named_config, register_architectures
from ofaseg.models.dual_encoder import DualEncoder
from ofaseg.models.image_encoders.vit import TIMM_SIZES, PatchTransformer
from ofaseg.models.layers.pooling import topk_mean, unit
from ofaseg.models.simseg_state import upgrade_official_state
from ofaseg.models.state import StateUpgrade
from ofaseg.models.text_encoders.bert import BERT_SIZES, BertTokens

PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of RGB in 0..1."""
TEMPERATURE_RANGE = (0.001, 0.5)
TEXT_ENTRIES = ("text_encoder.", "text_projection.")


@dataclass
class SimSegConfig(FairseqDataclass):
    """Options of SimSeg; the defaults are `simseg_vit_s`."""

    image_tower: str = field(default="vit_small_patch16", metadata={"help": f"image tower: {', '.join(TIMM_SIZES)}"})
    text_tower: str = field(default="bert_base", metadata={"help": f"text tower: {', '.join(BERT_SIZES)}"})
    vocab_size: int = field(default=0, metadata={"help": "rows of the word embedding (0: as many as the tokenizer's vocabulary)"})
    projection_dim: int = field(default=512, metadata={"help": "dimension of image and text vectors"})
    image_size: int = field(default=288, metadata={"help": "photo side in pixels that the position table is made for"})
    image_topk: int = field(default=5, metadata={"help": "k of LoDA: patches whose mean makes a channel of the image vector"})
    mask_padding_in_training: bool = field(
        default=False,
        metadata={"help": "leave padding out of the text's maximum in training, too; the released models were trained with it in (LoDA)"},
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout of the text tower"})
    temperature: float = field(default=0.02, metadata={"help": "start value of the contrastive temperature, clamped to 0.001..0.5"})
    fixed_temperature: bool = field(default=False, metadata={"help": "do not train the temperature"})


ARCHITECTURES = {
    "simseg_vit_s": dict(),
    "simseg_vit_b": dict(image_tower="vit_base_patch16"),
    "simseg_nano": dict(image_tower="vit_nano_patch8", text_tower="bert_nano", projection_dim=128, image_size=96),
}
"""Named architectures: what differs from the defaults of SimSegConfig."""


def architecture_config(name: str, **options) -> SimSegConfig:
    """The configuration of a named architecture, with `options` on top. Raises ValueError listing the known names."""
    return named_config(SimSegConfig, ARCHITECTURES, name, options)


@register_model("simseg", dataclass=SimSegConfig)
class SimSeg(DualEncoder, BaseFairseqModel):
    """Image and text tower, projections, LoDA pooling.

    Args:
        config: sizes and options.
        vocab_size: rows of the word embedding.
        prompts: for each class the token ids of its prompts (with CLS and SEP), see `set_classes`; None for no classes yet.
        pad: id of padding.

    Attributes:
        grid_stride: pixels per patch.

    Raises:
        ValueError: an unknown tower.
    """

    def __init__(self, config: SimSegConfig, vocab_size: int, prompts: Optional[Sequence] = None, pad: int = 0):
        super().__init__()
        for tower, known in ((config.image_tower, TIMM_SIZES), (config.text_tower, BERT_SIZES)):
            if tower not in known:
                raise ValueError(f"unknown tower {tower!r}; known: {', '.join(known)}")
        self.config = config
        self.image_encoder = PatchTransformer(config.image_tower, config.image_size)
        self.text_encoder = BertTokens(config.text_tower, vocab_size, config.dropout)
        self.image_projection = nn.Linear(self.image_encoder.dim, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_encoder.dim, config.projection_dim, bias=False)
        self.temperature = nn.Parameter(torch.tensor(config.temperature), requires_grad=not config.fixed_temperature)
        self.grid_stride = self.image_encoder.patch
        self.set_up(prompts, pad, PIXEL_MEAN, PIXEL_STD)

    @classmethod
    def build_model(cls, cfg: SimSegConfig, task) -> "SimSeg":
        """Builds the model for a task with a `text_tokenizer` and `class_prompts`, whose configuration has `text_length`.

        Raises:
            ValueError: an unknown tower, texts longer than the text tower reads, or a tokenizer with more entries than it has words.
        """
        entries = len(task.text_tokenizer)
        if 0 < cfg.vocab_size < entries:
            raise ValueError(f"--vocab-size {cfg.vocab_size}: the tokenizer has {entries} entries; give at least as many, or 0")
        model = cls(cfg, cfg.vocab_size or len(task.text_tokenizer), task.class_prompts, task.text_tokenizer.pad)
        if task.cfg.text_length > model.text_encoder.max_length:
            longest = model.text_encoder.max_length
            raise ValueError(f"--text-length {task.cfg.text_length}: the text tower {cfg.text_tower} reads {longest} tokens at most")
        return model

    # -- passes ----------------------------------------------------------------------------------------------------

    def pixels(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W) -> (B, H, W, 3) uint8, as the published code hands them to its CRF.

        It takes the normalisation back and cuts the decimals off, by which some values end up one too low.
        """
        return ((self.normalised(image) * self.pixel_std + self.pixel_mean) * 255).to(torch.uint8).permute(0, 2, 3, 1)

    def patches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (B, 3, H, W) -> patch tokens (B, h * w, dim) of the tower and their projections (B, h * w, D)."""
        tokens = self.image_encoder(self.normalised(image))[:, 1:]
        return tokens, self.image_projection(tokens)

    def dense(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Photos (B, 3, H, W) -> patch tokens, their projections, and LoDA over the projections."""
        tokens, projected = self.patches(image)
        return tokens, projected, unit(topk_mean(projected, self.config.image_topk))

    def embed_image(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W) -> (B, D) unit vectors: LoDA over the patches."""
        return unit(topk_mean(self.patches(image)[1], self.config.image_topk))

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) -> (B, D) unit vectors: the maximum per channel over words, CLS and SEP.

        In training the maximum is over padding as well, unless `mask_padding_in_training`.
        """
        tokens = self.text_projection(self.text_encoder(input_ids, attention_mask))
        masked = not self.training or self.config.mask_padding_in_training
        return unit(topk_mean(tokens, 1, attention_mask if masked else None))

    def clamped_temperature(self) -> Tensor:
        """Scalar in 0.001..0.5."""
        return self.temperature.clamp(*TEMPERATURE_RANGE)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def upgrade_state(self, state_dict: dict) -> StateUpgrade:
        """Makes an official SimSeg state dict loadable, in place; raises CheckpointError when it does not fit."""
        self.forget_text_vectors()
        return upgrade_official_state(state_dict, self.state_dict())

    def text_state(self) -> dict[str, Tensor]:
        """The entries of the state dict that class vectors depend on: text tower and projection."""
        return {key: value for key, value in self.state_dict().items() if key.startswith(TEXT_ENTRIES)}


register_architectures("simseg", ARCHITECTURES)
