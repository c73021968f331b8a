"""The contract of every segmentation model: `forward(**net_input)` and `predict(**net_input)`."""

from typing import Sequence

import torch
from torch import Tensor

from ofaseg.structures import DenseOutput


class Segmenter:
    """Mix-in for a `torch.nn.Module` that segments images into a list of K classes.

    A model implements `forward`, `set_classes` and `class_embeddings`; `predict` comes from here.
    """

    def forward(self, **net_input) -> DenseOutput:
        """Scores of a batch: `class_logits` (B, K, h, w) on the patch grid, before softmax."""
        raise NotImplementedError

    def set_classes(self, texts: Sequence) -> None:
        """Replaces the class list; class k is made of `texts[k]`, token ids: those of the name, or of each of its prompts."""
        raise NotImplementedError

    def class_embeddings(self) -> Tensor:
        """(K, D) vectors that the class scores are products with."""
        raise NotImplementedError

    def pixels(self, image: Tensor) -> Tensor:
        """Photos (B, 3, H, W) uint8 as `forward` takes them -> (B, H, W, 3) uint8, for refinements that read colours."""
        return image.permute(0, 2, 3, 1)

    @torch.no_grad()
    def predict(self, **net_input) -> DenseOutput:
        """`forward` in evaluation mode without gradients; `class_logits` are float32. The training mode is restored."""
        was_training = self.training
        if was_training:
            self.eval()
        try:
            output = self(**net_input)
        finally:
            if was_training:
                self.train()
        return output._replace(class_logits=output.class_logits.float())
