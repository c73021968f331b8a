"""What models with a text tower share: classes made from prompts, their vectors kept, photos normalised."""

from typing import Optional, Sequence

import torch
from torch import Tensor

from ofaseg.models.layers.subclass_fusion import SubclassPrompts
from ofaseg.models.segmenter import Segmenter
from ofaseg.models.text_encoders.class_embeddings import class_embeddings


class PromptedSegmenter(Segmenter):
    """Mix-in for a `torch.nn.Module` whose classes are vectors of texts.

    A model calls `set_up` once its towers stand, and implements `embed_text`, `text_dim` and `text_state`.

    Attributes:
        pad: id of padding.
        prompts: for each class the token ids of its prompts; None for no classes yet.
        subclasses: finer names of the classes, None where a model has none.
        text_is_frozen: whether training leaves the text tower as it is.
    """

    subclasses = None
    text_is_frozen = False

    def set_up(self, prompts: Optional[Sequence], pad: int, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        """Keeps the prompts, and mean and deviation of RGB in 0..1 that photos are normalised with."""
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        self.pad = pad
        self.set_classes(prompts)

    # -- what a model implements -----------------------------------------------------------------------------------

    @property
    def text_dim(self) -> int:
        """D, the dimension of text vectors."""
        raise NotImplementedError

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, L), 1 for tokens and 0 for padding -> (B, D) unit vectors."""
        raise NotImplementedError

    def text_state(self) -> dict[str, Tensor]:
        """The weights that class vectors depend on, by name."""
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

    def class_embeddings(self) -> Tensor:
        """(K, D) unit vectors, made from the prompts in evaluation mode; kept until the text tower is trained or loaded.

        Raises:
            ValueError: the model has no classes.
        """
        return self.name_embeddings()

    def name_embeddings(self) -> Tensor:
        """(K, D) as `class_embeddings`, of the class names themselves, whatever finer names there are."""
        if not self.prompts and "classes" not in self._text_vectors:
            raise ValueError("this model has no classes; call set_classes first")
        return self._vectors("classes", self.prompts)

    def set_subclasses(self, subclasses: Optional[SubclassPrompts]) -> None:
        """Makes class maps from finer names; which classes a photo holds stays with the class names (LLM supervision).

        Raises:
            ValueError: another number of classes, or a class without subclasses.
        """
        if subclasses is not None and len(subclasses.prompts) != len(self.prompts or ()):
            raise ValueError(f"subclasses of {len(subclasses.prompts)} classes for a model of {len(self.prompts or ())} classes")
        self.subclasses = subclasses
        self._text_vectors.pop("subclasses", None)

    def subclass_embeddings(self) -> Tensor:
        """(N, D) unit vectors of the subclasses of all K classes, class by class, made and kept as `class_embeddings`.

        Raises:
            ValueError: the model has no subclasses.
        """
        if self.subclasses is None:
            raise ValueError("this model has no subclasses; call set_subclasses first")
        return self._vectors("subclasses", self.subclasses.flat)

    def keep_subclass_embeddings(self, vectors: Tensor) -> None:
        """Takes `vectors` (N, D) for what `subclass_embeddings` would compute."""
        self._text_vectors["subclasses"] = vectors.to(self.pixel_mean.device)

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
        if self.text_is_frozen or not was_training:  # else the next update makes them old
            self._text_vectors[kind] = vectors
        return vectors

    def keep_class_embeddings(self, vectors: Tensor) -> None:
        """Takes `vectors` (K, D) for what `name_embeddings` would compute from weights and prompts as they are now."""
        self._text_vectors["classes"] = vectors.to(self.pixel_mean.device)

    def forget_text_vectors(self) -> None:
        """To be called when the text tower has changed: vectors of texts are made anew."""
        self._text_vectors: dict[str, Tensor] = {}

    # -- photos ----------------------------------------------------------------------------------------------------

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
