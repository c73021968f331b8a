"""FreeSeg: one network for open-vocabulary semantic, instance and panoptic segmentation (CVPR 2023, "FreeSeg: Unified, Universal and
Open-Vocabulary Image Segmentation").

Queries become masks and vectors; a vector's cosines with CLIP's text vectors, made from learned prompts of class and task, are class
scores. Masked regions may be classified by CLIP's image tower as well.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from ofaseg.models.architectures import named_config, register_architectures
from ofaseg.models.clip_towers import CLIP_SIZES
from ofaseg.models.freeseg_state import upgrade_official_state
from ofaseg.models.image_encoders.feature_pyramid import SIZES, TIMM_PREFIX, build_pyramid
from ofaseg.models.layers.mask_predictor import MaskPredictor, Predictions
from ofaseg.models.layers.pixel_decoder import PixelDecoder, PixelFeatures
from ofaseg.models.layers.region_crops import full_masks, region_vectors
from ofaseg.models.layers.text_interaction import TextInteraction
from ofaseg.models.prompted_clip import TASKS, PromptedClip, PromptedClipConfig, check_tokenizer
from ofaseg.models.segmenter import Segmenter
from ofaseg.models.state import StateUpgrade
from ofaseg.structures import MaskOutput

PIXEL_MEAN, PIXEL_STD = (123.675, 116.280, 103.530), (58.395, 57.120, 57.375)
"""ImageNet's, of RGB in 0..255."""
NOT_DECAYING = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.Embedding)
"""Modules whose weights have no weight decay; the predictor's tables belong to them, which are no modules here."""


@dataclass
class FreeSegConfig(PromptedClipConfig):
    """Options of FreeSeg, CLIP's sizes among them; the defaults are `freeseg_r50`. CLIP reads regions of `image_size` pixels."""

    image_encoder: str = field(default="resnet50", metadata={"help": f"{', '.join(SIZES)}, or {TIMM_PREFIX}<name> for timm's"})
    hidden_dim: int = field(default=256, metadata={"help": "width of pixel decoder and queries, a multiple of 32"})
    mask_dim: int = field(default=256, metadata={"help": "channels of the features that masks are products with"})
    num_queries: int = field(default=100, metadata={"help": "Q: masks per photo"})
    encoder_layers: int = field(default=6, metadata={"help": "layers of the pixel decoder's deformable encoder"})
    encoder_hidden: int = field(default=1024, metadata={"help": "width of its feed-forward networks"})
    encoder_points: int = field(default=4, metadata={"help": "points per head and map of its deformable attention"})
    decoder_layers: int = field(default=10, metadata={"help": "layers of the mask predictor (published: 10, Mask2Former: 9)"})
    decoder_hidden: int = field(default=2048, metadata={"help": "width of its feed-forward networks"})
    attention_heads: int = field(default=8, metadata={"help": "attention heads of all decoders"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of the pixel decoder and of the attention to texts"})
    interaction_dim: int = field(default=2048, metadata={"help": "width of the attention from pixels to texts, all heads together"})
    interaction_heads: int = field(default=8, metadata={"help": "its heads"})
    without_interaction: bool = field(default=False, metadata={"help": "masks are predicted from pixels that have not read the texts"})
    class_hidden: int = field(default=1024, metadata={"help": "hidden width of the layers that make query vectors"})
    frozen_prompts: bool = field(default=False, metadata={"help": "do not train the prompts: they come from prompt learning"})
    first_task_text: bool = field(
        default=False,
        metadata={"help": "with frozen prompts: the text of a class stays that of the first task asked for, as in the published code"},
    )
    size_divisibility: int = field(default=32, metadata={"help": "photos are padded to multiples of so many pixels"})
    mask_threshold: float = field(default=0.5, metadata={"help": "probability above which a pixel belongs to the region that CLIP reads"})
    region_batch: int = field(default=32, metadata={"help": "regions that CLIP reads at a time, at most"})


ARCHITECTURES = {
    "freeseg_r50": dict(),
    "freeseg_r101c": dict(image_encoder="resnet101c"),
    "freeseg_nano": dict(
        image_encoder="resnet_nano", hidden_dim=64, mask_dim=64, num_queries=20, encoder_layers=2, encoder_hidden=128,
        decoder_layers=3, decoder_hidden=128, attention_heads=4, interaction_dim=64, interaction_heads=2, class_hidden=64,
        **CLIP_SIZES["nano"],
    ),
}  # fmt: skip
"""Named architectures: what differs from the defaults of FreeSegConfig."""


def architecture_config(name: str, **options) -> FreeSegConfig:
    """The configuration of a named architecture, with `options` on top. Raises ValueError listing the known names."""
    return named_config(FreeSegConfig, ARCHITECTURES, name, options)


class EncodedPhotos(NamedTuple):
    """What is computed of photos before texts play a part: the same for every task and vocabulary.

    Attributes:
        pixels: feature maps of the padded photos.
        colours: (B, 3, H, W) float in 0..255, which regions are cut from.
        sizes: for each of B photos its (height, width) without padding.
    """

    pixels: PixelFeatures
    colours: Tensor
    sizes: Sequence[tuple[int, int]]

    def one(self, photo: int) -> "EncodedPhotos":
        """Photo `photo` of the batch alone."""
        row = slice(photo, photo + 1)
        pixels = PixelFeatures(self.pixels.mask_features[row], tuple(level[row] for level in self.pixels.maps))
        return EncodedPhotos(pixels, self.colours[row], self.sizes[row])


@register_model("freeseg", dataclass=FreeSegConfig)
class FreeSeg(PromptedClip, Segmenter, BaseFairseqModel):
    """Image encoder, pixel decoder, interaction with texts, mask predictor, and a frozen CLIP with learned prompts.

    Args:
        config: sizes and options.
        prompts: see `set_classes`; None for no classes yet.

    Attributes:
        grid_stride: pixels per cell of mask logits.
        first_task: of `TASKS`, see `class_embeddings`; training sets the one of its first update.

    Raises:
        ValueError: an unknown image encoder, widths that do not fit, a region_batch below 1, or open_clip_torch is missing.
    """

    grid_stride = 4
    first_task = TASKS[0]

    def __init__(self, config: FreeSegConfig, prompts: Optional[Sequence] = None):
        super().__init__()
        self.config = config
        self.image_encoder = build_pyramid(config.image_encoder)
        self.pixel_decoder = PixelDecoder(
            self.image_encoder.out_channels, config.hidden_dim, config.mask_dim, config.encoder_layers, config.attention_heads,
            config.encoder_points, config.encoder_hidden, config.dropout,
        )  # fmt: skip
        self.interaction = TextInteraction(
            config.hidden_dim, config.projection_dim, config.interaction_dim, config.interaction_heads, config.dropout
        )
        self.predictor = MaskPredictor(
            config.hidden_dim, config.mask_dim, config.projection_dim, config.num_queries, config.decoder_layers,
            config.attention_heads, config.decoder_hidden, config.class_hidden,
        )  # fmt: skip
        self.interaction.requires_grad_(not config.without_interaction)
        if config.mask_dim != config.hidden_dim:
            raise ValueError(
                f"mask_dim {config.mask_dim}: maps and mask features read the same texts; give hidden_dim, {config.hidden_dim}"
            )
        if config.region_batch < 1:
            raise ValueError(f"region_batch {config.region_batch}: CLIP reads at least 1 region at a time")
        self.set_up(config)
        self.prompt.requires_grad_(not config.frozen_prompts)
        self.no_object = nn.Parameter(config.projection_dim**-0.5 * torch.randn(1, config.projection_dim))
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.set_classes(prompts)
        self._mark_for_optimizer()

    def _mark_for_optimizer(self) -> None:
        """Tells `--optimizer freeseg_adamw` what has a tenth of the rate, and what does not decay."""
        for parameter in self.image_encoder.parameters():
            parameter.param_group = "backbone"
        for module in self.modules():
            for parameter in module.parameters(recurse=False) if isinstance(module, NOT_DECAYING) else ():
                parameter.no_decay = True
        for table in (self.predictor.query_features, self.predictor.query_positions, self.predictor.level_embedding):
            table.no_decay = True

    @classmethod
    def build_model(cls, cfg: FreeSegConfig, task) -> "FreeSeg":
        """Builds the model for a task with a `text_tokenizer` and `class_prompts`.

        Raises:
            ValueError: the tokenizer is not CLIP's.
        """
        check_tokenizer(cfg, task)
        return cls(cfg, task.class_prompts)

    # -- texts -----------------------------------------------------------------------------------------------------

    def class_embeddings(self, task: str = TASKS[0], rows: Optional[Tensor] = None) -> Tensor:
        """As `PromptedClip.class_embeddings`; with `first_task_text` frozen prompts give all tasks the text of `first_task`."""
        if self.config.first_task_text and not self.prompt.class_prompt.requires_grad and task in TASKS:
            task = self.first_task
        return super().class_embeddings(task, rows)

    def text_features(self, task: str = TASKS[0], class_prompt: Optional[Tensor] = None) -> Tensor:
        """(K + 1, D) unit vectors of the classes, of another class prompt where given, and in the last row of no object."""
        classes = self.class_embeddings(task) if class_prompt is None else self.prompted_embeddings(task, class_prompt)
        return torch.cat([classes, F.normalize(self.no_object, dim=-1)])

    # -- passes ----------------------------------------------------------------------------------------------------

    def encode(self, image: Tensor, sizes: Optional[Sequence[tuple[int, int]]] = None) -> EncodedPhotos:
        """What does not depend on task and classes.

        Args:
            image: (B, 3, H, W) RGB in 0..255, any size; padded on the right and below where photos differ in size.
            sizes: for each photo its (height, width) without that padding; None for H and W.
        """
        height, width = image.shape[2:]
        sizes = [(height, width)] * len(image) if sizes is None else [(int(h), int(w)) for h, w in sizes]
        colours = image.float()
        normalised = (colours - self.pixel_mean) / self.pixel_std
        for row, (h, w) in zip(normalised, sizes):  # padding is 0 after normalisation
            row[:, h:] = 0
            row[:, :, w:] = 0
        step = self.config.size_divisibility
        normalised = F.pad(normalised, (0, -width % step, 0, -height % step))
        return EncodedPhotos(self.pixel_decoder(self.image_encoder(normalised)), colours, sizes)

    def decode(self, pixels: PixelFeatures, text: Tensor, last_only: bool = False) -> MaskOutput:
        """Masks and scores of encoded photos for text vectors (K + 1, D); of all decoder layers, or the last one."""
        predictions, mask_features = self._read_queries(pixels, text, last_only)
        logits = self._scaled_cosines(F.normalize(predictions.embeddings.float(), dim=-1), text)
        return MaskOutput(logits.unbind(0), predictions.mask_embeddings, mask_features)

    def query_vectors(self, pixels: PixelFeatures, text: Tensor) -> Tensor:
        """(B, Q, D) unit vectors of the queries after the last layer, whose cosines with `text` are the class scores of `decode`."""
        return F.normalize(self._read_queries(pixels, text, True)[0].embeddings[-1].float(), dim=-1)

    def _scaled_cosines(self, vectors: Tensor, text: Tensor) -> Tensor:
        """Logits (..., K + 1), in float32 always: half a digit of a cosine is a logit."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self.config.cosine_scale * (vectors.float() @ text.float().T)

    def _read_queries(self, pixels: PixelFeatures, text: Tensor, last_only: bool) -> tuple[Predictions, Tensor]:
        levels = [*pixels.maps, pixels.mask_features]
        *maps, mask_features = levels if self.config.without_interaction else self.interaction(levels, text)
        return self.predictor(maps, mask_features, last_only), mask_features

    def forward(
        self,
        image: Tensor,
        task: str = TASKS[0],
        sizes: Optional[Sequence[tuple[int, int]]] = None,
        rows: Optional[Tensor] = None,
    ) -> MaskOutput:
        """Photos (see `encode`) -> masks and class scores for one of `TASKS`; of all decoder layers in training, else of the last.

        `rows` are the rows of `text_features` that play a part, when classes are held out; the last one must be that of no object.
        """
        text = self.text_features(task)
        return self.decode(self.encode(image, sizes).pixels, text if rows is None else text[rows], last_only=not self.training)

    @torch.no_grad()
    def predict(
        self, image: Tensor, tasks: Sequence[str] = TASKS[:1], sizes: Optional[Sequence[tuple[int, int]]] = None, regions: bool = True
    ) -> dict[str, MaskOutput]:
        """For each task the masks of photos (see `encode`) in evaluation mode, with CLIP's opinion of their regions if `regions`.

        The photos are encoded once for all tasks. The training mode is restored.
        """
        was_training = self.training
        self.eval()
        try:
            photos = self.encode(image, sizes)
            outputs = {}
            for task in tasks:
                text = self.text_features(task)
                output = self.decode(photos.pixels, text, last_only=True)
                outputs[task] = self.with_regions(output, photos, text) if regions else output
        finally:
            self.train(was_training)
        return outputs

    def with_regions(self, output: MaskOutput, photos: EncodedPhotos, text: Tensor) -> MaskOutput:
        """Adds `region_logits` and `region_valid`: what CLIP says of the masked regions of the photos, for text vectors (K + 1, D)."""
        logits, valid = [], []
        for mask_logits, colours, (height, width) in zip(output.mask_logits, photos.colours, photos.sizes):
            masks = full_masks(mask_logits, self.grid_stride, (height, width), self.config.mask_threshold)
            photo = (colours[:, :height, :width] - self.clip_mean) / self.clip_std
            vectors, found = region_vectors(self.clip, photo, masks, self.config.image_size, self.config.region_batch)
            logits.append(self._scaled_cosines(vectors, text))
            valid.append(found)
        return output._replace(region_logits=torch.stack(logits), region_valid=torch.stack(valid))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def upgrade_state(self, state_dict: dict) -> StateUpgrade:
        """Makes a state dict of FreeSeg or Mask2Former loadable, in place; raises CheckpointError when it does not fit."""
        self.forget_text_vectors()
        return upgrade_official_state(state_dict, self.state_dict())

    def upgrade_state_dict_named(self, state_dict: dict, name: str) -> None:
        """fairseq's hook before strict loading."""
        self.upgrade_state(state_dict)


register_architectures("freeseg", ARCHITECTURES)
