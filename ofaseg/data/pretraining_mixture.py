"""How often each task of vision-language pretraining is drawn, and the numbers of the tasks."""

from dataclasses import dataclass

import numpy as np

TASKS = ("caption", "box", "ground", "infill", "copy", "crop")


class PretrainingSettingsError(ValueError):
    """A setting of the mixture is out of range."""


@dataclass(frozen=True)
class PretrainingMixture:
    """How often each task is drawn, and the numbers of the tasks.

    Attributes:
        caption, box, ground, infill, copy, crop: non-negative weights; they need not sum to 1.
        mask_ratio: share of words that infilling replaces by `<mask>`.
        hidden_ratio: share of infilling samples that do not see the image.
        copy_min, copy_max: number of random words of a copying sample.
        max_regions: a region sample asks for 1..max_regions boxes of its image at once, in random order.
        crop_side: side in pixels of the small image that shows one region cut out.
        substitution: probability that words stand in for patches of an image: inside random boxes, or inside the cut-out, a
            random share of the patches is replaced by a word of the box's text.
        flip: probability of a horizontal mirror of image and boxes (captions here never say left or right).
    """

    caption: float = 0.4
    box: float = 0.3
    ground: float = 0.0
    infill: float = 0.2
    copy: float = 0.1
    crop: float = 0.0
    mask_ratio: float = 0.3
    hidden_ratio: float = 0.5
    copy_min: int = 4
    copy_max: int = 15
    max_regions: int = 4
    crop_side: int = 48
    substitution: float = 0.0
    flip: float = 0.5

    def probabilities(self) -> np.ndarray:
        """(len(TASKS),) probabilities. Raises PretrainingSettingsError for negative weights or none above zero."""
        weights = np.array([getattr(self, task) for task in TASKS], dtype=np.float64)
        if (weights < 0).any() or weights.sum() <= 0:
            given = dict(zip(TASKS, weights.tolist(), strict=True))
            raise PretrainingSettingsError(f"pretraining weights must be non-negative and not all zero, got {given}")
        if not 1 <= self.copy_min <= self.copy_max:
            raise PretrainingSettingsError(f"copying needs 1 <= copy_min <= copy_max, got {self.copy_min} and {self.copy_max}")
        return weights / weights.sum()

    def check_crop_side(self, image_side: int, patch_stride: int) -> None:
        """Raises PretrainingSettingsError when cut-outs are drawn and their side is no whole number of patches of an image."""
        if self.crop > 0 and (self.crop_side % patch_stride or not patch_stride <= self.crop_side <= image_side):
            raise PretrainingSettingsError(
                f"--crop-side {self.crop_side} must be a multiple of the model's patches ({patch_stride} pixels) and at most "
                f"--patch-image-size {image_side}; change it, or set --crop-task 0"
            )

    @property
    def reads_boxes(self) -> bool:
        """Whether any sample needs the boxes of its row."""
        return max(self.box, self.ground, self.crop, self.substitution) > 0
