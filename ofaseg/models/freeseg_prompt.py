"""The first stage of FreeSeg: prompts that name the classes of cut-out regions, for a frozen CLIP (FreeSeg, section 3.4).

Nothing but the prompts is trained. Image vectors are computed without a graph, text vectors with one for the prompts alone.
"""

from dataclasses import dataclass, field
from typing import Optional, Sequence

import torch
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor

from ofaseg.models.architectures import named_config, register_architectures
from ofaseg.models.clip_dense import PIXEL_MEAN
from ofaseg.models.clip_towers import CLIP_SIZES, image_vectors
from ofaseg.models.freeseg_state import upgrade_official_prompts
from ofaseg.models.prompted_clip import PromptedClip, PromptedClipConfig, check_tokenizer
from ofaseg.models.state import StateUpgrade


@dataclass
class FreeSegPromptConfig(PromptedClipConfig):
    """Options of prompt learning; the defaults are `freeseg_prompt_b16`."""

    fill_with_mean: bool = field(
        default=False,
        metadata={"help": "what lies outside a region becomes CLIP's mean colour once more after normalisation, as in the published code"},
    )


ARCHITECTURES = {"freeseg_prompt_b16": dict(), "freeseg_prompt_nano": CLIP_SIZES["nano"]}
"""Named architectures: what differs from the defaults of FreeSegPromptConfig."""


def architecture_config(name: str, **options) -> FreeSegPromptConfig:
    """The configuration of a named architecture, with `options` on top. Raises ValueError listing the known names."""
    return named_config(FreeSegPromptConfig, ARCHITECTURES, name, options)


@register_model("freeseg_prompt", dataclass=FreeSegPromptConfig)
class FreeSegPrompt(PromptedClip, BaseFairseqModel):
    """A frozen CLIP with learned prompts that classifies regions.

    Args:
        config: sizes and options.
        prompts: see `set_classes`; None for no classes yet.

    Raises:
        ValueError: open_clip_torch is missing.
    """

    def __init__(self, config: FreeSegPromptConfig, prompts: Optional[Sequence] = None):
        super().__init__()
        self.config = config
        self.set_up(config)
        self.set_classes(prompts)

    @classmethod
    def build_model(cls, cfg: FreeSegPromptConfig, task) -> "FreeSegPrompt":
        """Builds the model for a task with a `text_tokenizer` and `class_prompts`.

        Raises:
            ValueError: the tokenizer is not CLIP's.
        """
        check_tokenizer(cfg, task)
        return cls(cfg, task.class_prompts)

    def forward(self, image: Tensor, masks: Tensor, tasks: Sequence[str], task_rows: Tensor, class_rows: Optional[Tensor] = None) -> Tensor:
        """Cosines, scaled, of regions and the texts of their own task.

        Args:
            image: (B, 3, H, W) RGB in 0..255, one region in each.
            masks: (B, H, W) bool, its pixels.
            tasks: the T tasks that occur, of `TASKS`.
            task_rows: (B,) long, the place of each region's task among `tasks`.
            class_rows: (n,) long, the classes that play a part; None for all K.

        Returns: (B, n) class logits.
        """
        with torch.no_grad():
            vectors = self.region_vectors(image, masks)
        text = torch.stack([self.class_embeddings(task, class_rows) for task in tasks])
        with torch.autocast(image.device.type, enabled=False):  # half a digit of a cosine is a logit
            cosines = torch.einsum("bd,tkd->btk", vectors.float(), text.float())
            return self.config.cosine_scale * cosines[torch.arange(len(vectors), device=vectors.device), task_rows]

    def region_vectors(self, image: Tensor, masks: Tensor) -> Tensor:
        """(B, D) unit vectors of regions, see `forward`. Sides are cut to multiples of the patch on the right and below."""
        step = self.config.patch_size
        height, width = (side // step * step for side in image.shape[2:])
        normalised = (image[:, :, :height, :width].float() - self.clip_mean) / self.clip_std
        fill = normalised.new_tensor(PIXEL_MEAN).view(3, 1, 1) if self.config.fill_with_mean else normalised.new_zeros(())
        regions = torch.where(masks[:, None, :height, :width], normalised, fill)
        return image_vectors(self.clip, regions)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def upgrade_state(self, state_dict: dict) -> StateUpgrade:
        """Makes a state dict of published prompt learning loadable, in place; raises CheckpointError when it does not fit."""
        self.forget_text_vectors()
        return upgrade_official_prompts(state_dict, self.state_dict())

    def upgrade_state_dict_named(self, state_dict: dict, name: str) -> None:
        """fairseq's hook before strict loading."""
        self.upgrade_state(state_dict)


register_architectures("freeseg_prompt", ARCHITECTURES)
