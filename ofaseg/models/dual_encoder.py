"""What models of an image and a text tower share: classes made from prompts, class maps as cosines, class vectors that are kept."""

from typing import Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.models.segmenter import Segmenter
from ofaseg.models.state import StateUpgrade
from ofaseg.models.text_encoders.class_embeddings import class_embeddings
from ofaseg.structures import DenseOutput, ImageTextOutput


class DualEncoder(Segmenter):
    """Mix-in for a `torch.nn.Module` that brings photos, their patches and texts into one space of D dimensions.

    A model calls `set_up` once its towers stand, and implements `dense`, `embed_image`, `embed_text`, `clamped_temperature`,
    `upgrade_state` and `text_state`.

    Attributes:
        grid_stride: pixels per patch.
        pad: id of padding in texts.
        prompts: for each class the token ids of its prompts; None for no classes yet.
    """

    grid_stride: int

    def set_up(self, prompts: Optional[Sequence], pad: int, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        """Keeps the prompts, and mean and deviation of RGB in 0..1 that photos are normalised with."""
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        self.pad, self.prompts, self._class_vectors = pad, prompts, None

    # -- what a model implements -----------------------------------------------------------------------------------

    def dense(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Photos (B, 3, H, W) -> patch tokens (B, h * w, F), their projections (B, h * w, D), photo vectors (B, D) of length 1."""
        raise NotImplementedError

    def embed_image(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W) -> (B, D) unit vectors."""
        raise NotImplementedError

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, L), 1 for tokens and 0 for padding -> (B, D) unit vectors."""
        raise NotImplementedError

    def clamped_temperature(self) -> Tensor:
        """Scalar above 0 by which cosines are divided in the contrastive loss."""
        raise NotImplementedError

    def upgrade_state(self, state_dict: dict) -> StateUpgrade:
        """Makes an official state dict loadable, in place; raises CheckpointError when it does not fit."""
        raise NotImplementedError

    def text_state(self) -> dict[str, Tensor]:
        """The entries of the state dict that class vectors depend on."""
        raise NotImplementedError

    def text_options(self) -> str:
        """What class vectors depend on beside weights and prompts, as a text."""
        return ""

    # -- classes ---------------------------------------------------------------------------------------------------

    def set_classes(self, prompts: Sequence[Sequence[Sequence[int]]]) -> None:
        """Replaces the class list; class k is the mean over its prompts, `prompts[k]`, each the token ids of one text."""
        self.prompts, self._class_vectors = prompts, None

    def class_embeddings(self) -> Tensor:
        """(K, D) unit vectors, made from the prompts in evaluation mode; kept until the model is trained or loaded.

        Raises:
            ValueError: the model has no classes.
        """
        device = self.pixel_mean.device
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
        self._class_vectors = vectors.to(self.pixel_mean.device)

    def train(self, mode: bool = True) -> "DualEncoder":
        """As `nn.Module.train`; training changes the text tower, so class vectors are forgotten."""
        if mode:
            self._class_vectors = None
        return super().train(mode)

    # -- passes ----------------------------------------------------------------------------------------------------

    def normalised(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W), uint8 -> float with mean and deviation taken out; float ones are normalised already."""
        if image.is_floating_point():
            return image
        return (image.float() / 255 - self.pixel_mean) / self.pixel_std

    def pixels(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W) as `forward` takes them -> (B, H, W, 3) uint8."""
        if image.is_floating_point():
            image = ((image * self.pixel_std + self.pixel_mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return image.permute(0, 2, 3, 1)

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

        Returns: ImageTextOutput for pairs; else DenseOutput with the cosines of patches and classes as class_logits, the
            tower's tokens as features, and the cosines of photo and classes as image_scores.
        """
        if input_ids is not None:
            return ImageTextOutput(self.embed_image(image), self.embed_text(input_ids, attention_mask), self.clamped_temperature())
        grid = (image.shape[2] // self.grid_stride, image.shape[3] // self.grid_stride)
        tokens, projected, photos = self.dense(image)
        classes = self.class_embeddings().to(projected.dtype)
        maps = F.normalize(projected, dim=-1) @ classes.T
        scores = photos.to(classes.dtype) @ classes.T
        return DenseOutput(maps.transpose(1, 2).unflatten(2, grid), tokens.transpose(1, 2).unflatten(2, grid), scores)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def upgrade_state_dict_named(self, state_dict: dict, name: str) -> None:
        """fairseq's hook before strict loading."""
        self.upgrade_state(state_dict)
