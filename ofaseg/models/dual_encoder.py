"""What models share whose image and text tower were trained together: class maps as cosines, pairs, finer names of classes."""

from typing import Optional, Union

import torch.nn.functional as F
from torch import Tensor

from ofaseg.models.layers.subclass_fusion import padded_subclasses, subclass_maps
from ofaseg.models.prompted_segmenter import PromptedSegmenter
from ofaseg.models.state import StateUpgrade
from ofaseg.structures import DenseOutput, ImageTextOutput


class DualEncoder(PromptedSegmenter):
    """Mix-in for a `torch.nn.Module` that brings photos, their patches and texts into one space of D dimensions.

    A model implements what `PromptedSegmenter` asks for, `dense`, `embed_image`, `clamped_temperature` and `upgrade_state`.

    Attributes:
        grid_stride: pixels per patch.
        subclasses: finer names of the classes that maps are made from, see `set_subclasses`; None for the classes themselves.
    """

    grid_stride: int

    # -- what a model implements -----------------------------------------------------------------------------------

    def dense(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Photos (B, 3, H, W) -> patch tokens (B, h * w, F), their projections (B, h * w, D), photo vectors (B, D) of length 1."""
        raise NotImplementedError

    def embed_image(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W) -> (B, D) unit vectors."""
        raise NotImplementedError

    def clamped_temperature(self) -> Tensor:
        """Scalar above 0 by which cosines are divided in the contrastive loss."""
        raise NotImplementedError

    def upgrade_state(self, state_dict: dict) -> StateUpgrade:
        """Makes an official state dict loadable, in place; raises CheckpointError when it does not fit."""
        raise NotImplementedError

    @property
    def text_dim(self) -> int:
        """D."""
        return self.config.projection_dim

    # -- classes ---------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "DualEncoder":
        """As `nn.Module.train`; training changes the text tower, so text vectors are forgotten."""
        if mode:
            self.forget_text_vectors()
        return super().train(mode)

    # -- passes ----------------------------------------------------------------------------------------------------

    def patches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Photos (B, 3, H, W) -> patch tokens (B, h * w, F) of the tower and their projections (B, h * w, D)."""
        return self.dense(image)[:2]

    def forward(
        self, image: Tensor, input_ids: Optional[Tensor] = None, attention_mask: Optional[Tensor] = None
    ) -> Union[DenseOutput, ImageTextOutput]:
        """Segments photos, or embeds pairs of photos and texts.

        Args:
            image: (B, 3, H, W) photos, uint8, or float already normalised; H and W multiples of the patch.
            input_ids: (B, L) token ids select the pairs; attention_mask (B, L) is 1 for tokens, 0 for padding.

        Returns: ImageTextOutput for pairs; else DenseOutput with the cosines of patches and classes as class_logits (with subclasses
            what their fusion makes of theirs), the tower's tokens as features, and the cosines of photo and classes as image_scores.
        """
        if input_ids is not None:
            return ImageTextOutput(self.embed_image(image), self.embed_text(input_ids, attention_mask), self.clamped_temperature())
        grid = (image.shape[2] // self.grid_stride, image.shape[3] // self.grid_stride)
        tokens, projected, photos = self.dense(image)
        classes = self.class_embeddings().to(projected.dtype)
        patches, photos = F.normalize(projected, dim=-1), photos.to(classes.dtype)
        maps = patches @ classes.T if self.subclasses is None else self._subclass_maps(patches, photos, classes)
        scores = photos @ classes.T
        return DenseOutput(maps.transpose(1, 2).unflatten(2, grid), tokens.transpose(1, 2).unflatten(2, grid), scores)

    def _subclass_maps(self, patches: Tensor, photos: Tensor, classes: Tensor) -> Tensor:
        """(B, h * w, K) from unit vectors of patches (B, h * w, D), photos (B, D) and classes (K, D)."""
        vectors, mask = padded_subclasses(self.subclass_embeddings().to(classes.dtype), self.subclasses.counts)
        rule, temperature = self.subclasses.rule, self.subclasses.temperature
        return subclass_maps(patches, photos.to(patches.dtype), vectors, mask, classes, rule, temperature)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def upgrade_state_dict_named(self, state_dict: dict, name: str) -> None:
        """fairseq's hook before strict loading."""
        self.upgrade_state(state_dict)
