"""What models of an image and a text tower share: classes made from prompts, class maps as cosines, class vectors that are kept."""

from typing import Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.models.layers.subclass_fusion import SubclassPrompts, padded_subclasses, subclass_maps
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
        subclasses: finer names of the classes that maps are made from, see `set_subclasses`; None for the classes themselves.
    """

    grid_stride: int

    def set_up(self, prompts: Optional[Sequence], pad: int, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        """Keeps the prompts, and mean and deviation of RGB in 0..1 that photos are normalised with."""
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        self.pad = pad
        self.set_classes(prompts)

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

    def set_classes(self, prompts: Optional[Sequence[Sequence[Sequence[int]]]]) -> None:
        """Replaces the class list; class k is the mean over its prompts, `prompts[k]`, each the token ids of one text.

        Subclasses belong to a class list: they are gone afterwards.
        """
        self.prompts, self.subclasses = prompts, None
        self.forget_text_vectors()

    def set_subclasses(self, subclasses: Optional[SubclassPrompts]) -> None:
        """Makes class maps from finer names; which classes a photo holds stays with the class names (LLM supervision).

        Raises:
            ValueError: another number of classes, or a class without subclasses.
        """
        if subclasses is not None and len(subclasses.prompts) != len(self.prompts or ()):
            raise ValueError(f"subclasses of {len(subclasses.prompts)} classes for a model of {len(self.prompts or ())} classes")
        self.subclasses = subclasses
        self._text_vectors.pop("subclasses", None)

    def class_embeddings(self) -> Tensor:
        """(K, D) unit vectors, made from the prompts in evaluation mode; kept until the model is trained or loaded.

        Raises:
            ValueError: the model has no classes.
        """
        if not self.prompts:
            raise ValueError("this model has no classes; call set_classes first")
        return self._vectors("classes", self.prompts)

    def subclass_embeddings(self) -> Tensor:
        """(N, D) unit vectors of the subclasses of all K classes, class by class, made and kept as `class_embeddings`.

        Raises:
            ValueError: the model has no subclasses.
        """
        if self.subclasses is None:
            raise ValueError("this model has no subclasses; call set_subclasses first")
        return self._vectors("subclasses", self.subclasses.flat)

    def _vectors(self, kind: str, prompts: Sequence) -> Tensor:
        """Unit vectors of `prompts`, one per entry, from memory where they are there."""
        device = self.pixel_mean.device
        if kind in self._text_vectors:
            return self._text_vectors[kind].to(device)  # the model may have moved since
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                vectors = class_embeddings(self.embed_text, prompts, self.pad, device)
        finally:
            self.train(was_training)
        if not was_training:  # else the next update makes them old
            self._text_vectors[kind] = vectors
        return vectors

    def keep_class_embeddings(self, vectors: Tensor) -> None:
        """Takes `vectors` (K, D) for what `class_embeddings` would compute from weights and prompts as they are now."""
        self._text_vectors["classes"] = vectors.to(self.pixel_mean.device)

    def keep_subclass_embeddings(self, vectors: Tensor) -> None:
        """Takes `vectors` (N, D) for what `subclass_embeddings` would compute."""
        self._text_vectors["subclasses"] = vectors.to(self.pixel_mean.device)

    def forget_text_vectors(self) -> None:
        """To be called when the text tower has changed: vectors of classes and subclasses are made anew."""
        self._text_vectors: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "DualEncoder":
        """As `nn.Module.train`; training changes the text tower, so text vectors are forgotten."""
        if mode:
            self.forget_text_vectors()
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
