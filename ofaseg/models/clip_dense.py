"""CLIP as a dense text model, without training: the patches of its image tower against its text tower's class vectors.

The towers are open_clip's, which also read OpenAI's weights; what patches mix in the last block is a named choice
(`ofaseg.models.layers.dense_attention`). Nothing is ever downloaded: weights come from a local file.
"""

import math
from dataclasses import dataclass, field
from typing import Optional, Sequence

from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor

from ofaseg.models.architectures import named_config, register_architectures
from ofaseg.models.clip_state import PREFIX, upgrade_official_state
from ofaseg.models.clip_towers import CLIP_SIZES, ClipSizes, before_last_block, build_towers, photo_vectors, text_vectors
from ofaseg.models.dual_encoder import DualEncoder
from ofaseg.models.layers.dense_attention import LAST_BLOCKS, VARIANTS, DenseAttention
from ofaseg.models.state import StateUpgrade

PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, of RGB in 0..1."""
LARGEST_SCALE = math.log(100)
"""CLIP's bound of logit_scale, the logarithm of what cosines are multiplied by."""


@dataclass
class ClipDenseConfig(ClipSizes):
    """Options of dense CLIP; the defaults are `clip_vit_b_16`."""

    dense_attention: str = field(default="clip", metadata={"help": f"what patches mix in the last block: {', '.join(VARIANTS)}"})
    last_block: str = field(
        default="paper",
        metadata={"help": f"{', '.join(LAST_BLOCKS)}: with residual and feed-forward network, without, or as the variant's paper"},
    )
    attention_temperature: float = field(default=1.0, metadata={"help": "t: similarities in the last block are divided by it"})
    attention_sigma: float = field(default=5.0, metadata={"help": "s of naclip's neighbourhood, in patches (paper: 5)"})


ARCHITECTURES = {f"clip_{name}": sizes for name, sizes in CLIP_SIZES.items()}
"""Named architectures: what differs from the defaults of ClipDenseConfig."""


def architecture_config(name: str, **options) -> ClipDenseConfig:
    """The configuration of a named architecture, with `options` on top. Raises ValueError listing the known names."""
    return named_config(ClipDenseConfig, ARCHITECTURES, name, options)


@register_model("clip_dense", dataclass=ClipDenseConfig)
class ClipDense(DualEncoder, BaseFairseqModel):
    """open_clip's two towers, the last block of the image tower read patch by patch.

    Args:
        config: sizes and options.
        prompts: for each class the token ids of its prompts (with start and end), see `set_classes`; None for no classes yet.
        pad: id of padding.

    Attributes:
        clip: `open_clip.model.CLIP`.
        attention: how the last block is read.
        grid_stride: pixels per patch.

    Raises:
        ValueError: an unknown variant, or open_clip_torch is missing.
    """

    def __init__(self, config: ClipDenseConfig, prompts: Optional[Sequence] = None, pad: int = 0):
        super().__init__()
        self.config = config
        self.attention = DenseAttention(config.dense_attention, config.last_block, config.attention_temperature, config.attention_sigma)
        self.clip = build_towers(config)
        self.grid_stride = config.patch_size
        self.set_up(prompts, pad, PIXEL_MEAN, PIXEL_STD)

    @classmethod
    def build_model(cls, cfg: ClipDenseConfig, task) -> "ClipDense":
        """Builds the model for a task with a `text_tokenizer` and `class_prompts`.

        Raises:
            ValueError: the tokenizer has other ids than the model's word embedding.
        """
        if len(task.text_tokenizer) != cfg.vocab_size:
            raise ValueError(
                f"the text tokenizer has {len(task.text_tokenizer)} entries, the model's word embedding {cfg.vocab_size} rows; "
                "CLIP needs --text-tokenizer clip_bpe"
            )
        return cls(cfg, task.class_prompts, task.text_tokenizer.pad)

    # -- passes ----------------------------------------------------------------------------------------------------

    def dense(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Photos (B, 3, H, W) -> patch tokens of the variant (B, h * w, F), projections (B, h * w, D), CLIP's photo vectors (B, D)."""
        tokens, grid = self._before_last_block(image)
        patches = self.clip.visual.ln_post(self.attention(self._last_block, tokens, grid)[:, 1:])
        return patches, patches @ self.clip.visual.proj, photo_vectors(self.clip.visual, tokens)

    def embed_image(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W) -> (B, D) unit vectors: CLIP's own, of the CLS token, whatever the variant."""
        return photo_vectors(self.clip.visual, self._before_last_block(image)[0])

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, L), L up to `context_length` -> (B, D) unit vectors, read at the end of the text.

        A token sees what stands before it, so that padding after the end changes nothing and need not be there.

        Raises:
            ValueError: L is larger than `context_length`.
        """
        return text_vectors(self.clip, input_ids, attention_mask)

    def clamped_temperature(self) -> Tensor:
        """Scalar of at least 0.01."""
        return (-self.clip.logit_scale.clamp(max=LARGEST_SCALE)).exp()

    @property
    def _last_block(self):
        return self.clip.visual.transformer.resblocks[-1]

    def _before_last_block(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Photos -> input of the last block (B, 1 + h * w, F), and (h, w).

        Raises:
            ValueError: a side is no multiple of the patch.
        """
        return before_last_block(self.clip.visual, self.normalised(image), self.grid_stride)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def upgrade_state(self, state_dict: dict) -> StateUpgrade:
        """Makes a state dict of OpenAI's CLIP or open_clip loadable, in place; raises CheckpointError when it does not fit."""
        self.forget_text_vectors()
        return upgrade_official_state(state_dict, self.state_dict())

    def text_state(self) -> dict[str, Tensor]:
        """The entries of the state dict that class vectors depend on: all but the image tower's and the scale."""
        others = (f"{PREFIX}visual.", f"{PREFIX}logit_scale")
        return {key: value for key, value in self.state_dict().items() if not key.startswith(others)}

    def text_options(self) -> str:
        """Weights alone say neither the activation nor the heads."""
        return f"plain_gelu={bool(self.config.plain_gelu)} text_heads={self.config.text_heads}"


register_architectures("clip_dense", ARCHITECTURES)
