"""What travels between data, model, criterion and evaluation.

A **batch** (what every dataset's ``collater`` returns) is a dict:

==================== =============================================================================================
``id``               LongTensor (B,), row numbers
``nsentences``       int B
``ntokens``          int B; what fairseq counts for its words-per-second
``net_input``        dict of keyword arguments of ``model.forward``
``target``           integer tensor (B, H, W) of class ids, 16 bit where they fit, ``IGNORE_INDEX`` where there is no label; or absent
``native_label_maps`` list of B integer tensors (H_i, W_i): labels at the photo's own size (evaluation), or absent
``native_segment_maps`` list of B integer tensors (H_i, W_i) of segment ids, 0 = none, with ``native_segments``, or absent
``native_segments``  list of B lists of dicts, the entries of the column `segments` (id, class_id, is_crowd, area, box)
``native_instances`` list of B lists of dicts, the entries of the column `instances` (the same, and mask), or absent
``native_sizes``     list of B (H_i, W_i), the photo's own height and width
==================== =============================================================================================
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from torch import Tensor, nn


class DenseOutput(NamedTuple):
    """What a segmentation model returns from ``forward``.

    Attributes:
        class_logits: (B, K, h, w) before softmax, on the patch grid; Fusioner's, before a sigmoid, at any size.
        features: (B, F, h, w) features of the image encoder, for feature propagation; None for image-free batches.
        image_scores: (B, K) how much each class is in the whole photo, for methods that choose candidate classes; else None.
    """

    class_logits: Tensor
    features: Optional[Tensor] = None
    image_scores: Optional[Tensor] = None


class MaskOutput(NamedTuple):
    """What a model of mask proposals returns from ``forward``: Q queries, each with a mask and scores of K classes and of no object.

    Masks are kept as factors, so that losses need not hold those of every query and layer.

    Attributes:
        class_logits: for each of L predictions (one per decoder layer, the last one is the result) (B, Q, K + 1) before softmax,
            the last column for no object.
        mask_embeddings: for each of L predictions (B, Q, M).
        mask_features: (B, M, h, w) on a quarter of the grid of the padded photo.
        region_logits: (B, Q, K + 1) what a classifier of the masked regions says, where the model has one and was asked; else None.
        region_valid: (B, Q) bool, whether there was a region; None as `region_logits`.
    """

    class_logits: tuple
    mask_embeddings: tuple
    mask_features: Tensor
    region_logits: Optional[Tensor] = None
    region_valid: Optional[Tensor] = None

    def layer_mask_logits(self, layer: int) -> Tensor:
        """(B, Q, h, w) mask logits of prediction `layer`, before sigmoid."""
        features = self.mask_features
        return (self.mask_embeddings[layer].to(features.dtype) @ features.flatten(2)).unflatten(2, features.shape[2:])

    @property
    def mask_logits(self) -> Tensor:
        """(B, Q, h, w) mask logits of the last prediction."""
        return self.layer_mask_logits(-1)


class MaskTargets(NamedTuple):
    """The masks of a batch, those of all photos after one another.

    Attributes:
        masks: (N, H, W) bool at the size of the padded photos; padding is background.
        classes: (N,) class ids.
        counts: for each of B photos how many masks are its own.
    """

    masks: Tensor
    classes: Tensor
    counts: tuple

    @property
    def starts(self) -> list[int]:
        """For each photo the row of its first mask."""
        return [sum(self.counts[:b]) for b in range(len(self.counts))]


class ImageTextOutput(NamedTuple):
    """What a dual encoder returns for pairs of photos and texts.

    Attributes:
        image_embedding: (B, D) unit vectors.
        text_embedding: (B, D) unit vectors.
        temperature: scalar above 0 by which cosines are divided.
    """

    image_embedding: Tensor
    text_embedding: Tensor
    temperature: Tensor


@dataclass
class PanopticSegmentation:
    """Every pixel of one image with its segment.

    Attributes:
        segment_map: (H, W) int32 segment ids 1.., 0 where there is none.
        segments: one dict per id that the map holds, with id, class_id (0..K-1), is_thing, is_crowd, area (pixels), box
            ([x0, y0, x1, y1] in pixels, ends exclusive) and, for predictions, score 0..1.
    """

    segment_map: Tensor
    segments: list


@dataclass
class InstanceSegmentation:
    """The countable objects of one image; their masks may overlap.

    Attributes:
        masks: (N, H, W) bool.
        class_ids: (N,) long, 0..K-1.
        scores: (N,) float, 0..1.
        boxes: (N, 4) float, [x0, y0, x1, y1] in pixels around the mask, ends exclusive; zeros for an empty mask.
    """

    masks: Tensor
    class_ids: Tensor
    scores: Tensor
    boxes: Tensor


@dataclass
class SegmentationOutput:
    """The segmentation of one image at its native size.

    Attributes:
        label_map: (H, W) long, class ids 0..K-1.
        class_scores: (K, H, W) probabilities when asked for, else None.
        segments: panoptic or instance segments (one dict each); empty for semantic output.
        panoptic: segments that part the image, where the method makes them.
        instances: scored objects, where the method makes them.
    """

    label_map: Tensor
    class_scores: Optional[Tensor] = None
    segments: list = field(default_factory=list)
    panoptic: Optional[PanopticSegmentation] = None
    instances: Optional[InstanceSegmentation] = None


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside fairseq's and DDP's wrappers: a forward without gradient must not pass through DDP, which counts forwards."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model
