"""SimSeg: a dual encoder whose image and text vectors are pooled from local tokens (CVPR 2023, "A Simple Framework for
Text-Supervised Semantic Segmentation").

Trained on captions alone; the cosine of a patch and a class name is the class map.
"""

from dataclasses import dataclass, field
from typing import Optional, Sequence, Union

import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from torch import Tensor, nn

from ofaseg.models.image_encoders.vit import TIMM_SIZES, PatchTransformer
from ofaseg.models.layers.pooling import topk_mean, unit
from ofaseg.models.segmenter import Segmenter
from ofaseg.models.simseg_state import upgrade_official_state
from ofaseg.models.state import StateUpgrade
from ofaseg.models.text_encoders.bert import BERT_SIZES, BertTokens
from ofaseg.models.text_encoders.class_embeddings import class_embeddings
from ofaseg.structures import DenseOutput, ImageTextOutput

PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of RGB in 0..1."""
TEMPERATURE_RANGE = (0.001, 0.5)


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
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    return SimSegConfig(**(ARCHITECTURES[name] | options))


@register_model("simseg", dataclass=SimSegConfig)
class SimSeg(Segmenter, BaseFairseqModel):
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
        self.config, self.pad = config, pad
        self.image_encoder = PatchTransformer(config.image_tower, config.image_size)
        self.text_encoder = BertTokens(config.text_tower, vocab_size, config.dropout)
        self.image_projection = nn.Linear(self.image_encoder.dim, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_encoder.dim, config.projection_dim, bias=False)
        self.temperature = nn.Parameter(torch.tensor(config.temperature), requires_grad=not config.fixed_temperature)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)
        self.grid_stride = self.image_encoder.patch
        self.prompts, self._class_vectors = prompts, None

    @classmethod
    def build_model(cls, cfg: SimSegConfig, task) -> "SimSeg":
        """Builds the model for a task with a `wordpiece` tokenizer and `class_prompts`, whose configuration has `text_length`.

        Raises:
            ValueError: an unknown tower, or texts longer than the text tower reads.
        """
        model = cls(cfg, cfg.vocab_size or len(task.wordpiece), task.class_prompts, task.wordpiece.pad)
        if task.cfg.text_length > model.text_encoder.max_length:
            longest = model.text_encoder.max_length
            raise ValueError(f"--text-length {task.cfg.text_length}: the text tower {cfg.text_tower} reads {longest} tokens at most")
        return model

    # -- classes ---------------------------------------------------------------------------------------------------

    def set_classes(self, prompts: Sequence[Sequence[Sequence[int]]]) -> None:
        """Replaces the class list; class k is the mean over its prompts, `prompts[k]`, each the token ids of one text."""
        self.prompts, self._class_vectors = prompts, None

    def class_embeddings(self) -> Tensor:
        """(K, D) unit vectors, made from the prompts in evaluation mode; kept until the model is trained or loaded.

        Raises:
            ValueError: the model has no classes.
        """
        device = self.image_projection.weight.device
        if self._class_vectors is not None:
            return self._class_vectors.to(device)  # the model may have moved since
        if not self.prompts:
            raise ValueError("this model has no classes; call set_classes first")
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                vectors = class_embeddings(self.embed_text, self.prompts, self.pad, device)
        finally:
            self.train(was_training)
        if not was_training:  # else the next update makes them old
            self._class_vectors = vectors
        return vectors

    def keep_class_embeddings(self, vectors: Tensor) -> None:
        """Takes `vectors` (K, D) for what `class_embeddings` would compute from weights and prompts as they are now."""
        self._class_vectors = vectors.to(self.image_projection.weight.device)

    def train(self, mode: bool = True) -> "SimSeg":
        """As `nn.Module.train`; training changes the text tower, so class vectors are forgotten."""
        if mode:
            self._class_vectors = None
        return super().train(mode)

    # -- passes ----------------------------------------------------------------------------------------------------

    def normalised(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W), uint8 -> float with ImageNet's mean and deviation taken out; float ones are normalised already."""
        if image.is_floating_point():
            return image
        return (image.float() / 255 - self.pixel_mean) / self.pixel_std

    def pixels(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W) -> (B, H, W, 3) uint8, as the published code hands them to its CRF.

        It takes the normalisation back and cuts the decimals off, by which some values end up one too low.
        """
        return ((self.normalised(image) * self.pixel_std + self.pixel_mean) * 255).to(torch.uint8).permute(0, 2, 3, 1)

    def patches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (B, 3, H, W) -> patch tokens (B, h * w, dim) of the tower and their projections (B, h * w, D)."""
        tokens = self.image_encoder(self.normalised(image))[:, 1:]
        return tokens, self.image_projection(tokens)

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

    def forward(
        self, image: Tensor, input_ids: Optional[Tensor] = None, attention_mask: Optional[Tensor] = None
    ) -> Union[DenseOutput, ImageTextOutput]:
        """Segments photos, or embeds pairs of photos and texts.

        Args:
            image: (B, 3, H, W) photos, uint8, or float already normalised; H and W multiples of the patch.
            input_ids: (B, L) token ids select the pairs; attention_mask (B, L) is 1 for tokens, 0 for padding.

        Returns: ImageTextOutput for pairs; else DenseOutput with the cosines of patches and classes as class_logits, the
            tower's tokens as features, and the cosines of photo and classes as image_scores.
        """
        if input_ids is not None:
            return ImageTextOutput(self.embed_image(image), self.embed_text(input_ids, attention_mask), self.clamped_temperature())
        grid = (image.shape[2] // self.grid_stride, image.shape[3] // self.grid_stride)
        tokens, projected = self.patches(image)
        classes = self.class_embeddings().to(projected.dtype)
        maps = F.normalize(projected, dim=-1) @ classes.T
        scores = unit(topk_mean(projected, self.config.image_topk)).to(classes.dtype) @ classes.T
        return DenseOutput(maps.transpose(1, 2).unflatten(2, grid), tokens.transpose(1, 2).unflatten(2, grid), scores)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def upgrade_state(self, state_dict: dict) -> StateUpgrade:
        """Makes an official SimSeg state dict loadable, in place; raises CheckpointError when it does not fit."""
        self._class_vectors = None
        return upgrade_official_state(state_dict, self.state_dict())

    def upgrade_state_dict_named(self, state_dict: dict, name: str) -> None:
        """fairseq's hook before strict loading."""
        self.upgrade_state(state_dict)


def _register_architecture(name: str) -> None:
    def fill(args) -> None:
        for key, value in ARCHITECTURES[name].items():
            setattr(args, key, getattr(args, key, value))

    register_model_architecture("simseg", name)(fill)


for _name in ARCHITECTURES:
    _register_architecture(_name)
