"""Datasets of token-sequence segmentation (IFSeg on OFA): photos, or artificial images, with the source text."""

from typing import Optional

import torch

from ofaseg.data.segmentation_dataset import PlainBatches, SegmentationDataset
from ofaseg.data.synthetic import ArtificialImageSampler


def with_source_text(batch: dict, source_tokens: torch.Tensor) -> dict:
    """Adds `src_tokens` (B, S) to a batch, the same sequence for every sample, without copying it B times."""
    batch["net_input"]["src_tokens"] = source_tokens.expand(batch["nsentences"], -1)
    return batch


class Seq2SeqSegmentationDataset(SegmentationDataset):
    """Photos as OFA reads them: `net_input` = src_tokens (B, S), patch_images (B, 3, H, W) uint8."""

    def __init__(self, *args, source_tokens: torch.Tensor, **kwargs):
        super().__init__(*args, **kwargs)
        self.source_tokens = source_tokens

    def collater(self, samples: list) -> dict:
        batch = super().collater(samples)
        if batch.get("nsentences"):
            batch["net_input"]["patch_images"] = batch["net_input"].pop("image")
            with_source_text(batch, self.source_tokens)
        return batch


class ArtificialImageDataset(PlainBatches):
    """Image-free training samples: no file is opened and nothing is decoded.

    `net_input` = src_tokens (B, S), class_maps (B, h, w) long; `target` (B, H, W) long.

    Args:
        sampler: draws the mosaics.
        epoch_size: samples per epoch.
        source_tokens: (S,) long.
        display: photos to run the model on beside training, for curves only (the official code's display pass); sample
            i carries photo i modulo its length under `display`.
    """

    def __init__(
        self, sampler: ArtificialImageSampler, epoch_size: int, source_tokens: torch.Tensor, display: Optional[PlainBatches] = None
    ):
        self.sampler, self.epoch_size, self.source_tokens, self.display = sampler, epoch_size, source_tokens, display

    def __len__(self) -> int:
        return self.epoch_size

    def ordered_indices(self):
        return torch.arange(self.epoch_size).numpy()

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if self.display is not None:
            self.display.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict:
        class_map, target = self.sampler(self.epoch, index)
        sample = {"id": index, "class_map": torch.from_numpy(class_map), "target": torch.from_numpy(target)}
        if self.display is not None:
            sample["display"] = self.display[index % len(self.display)]
        return sample

    def collater(self, samples: list) -> dict:
        """Batch of artificial images; {} without samples, see `SegmentationDataset.collater`."""
        if not samples:
            return {}
        batch = {
            "id": torch.tensor([s["id"] for s in samples], dtype=torch.long),
            "nsentences": len(samples),
            "ntokens": len(samples),
            "net_input": {"class_maps": torch.stack([s["class_map"] for s in samples])},
            "target": torch.stack([s["target"] for s in samples]),
        }
        if self.display is not None:
            batch["display"] = self.display.collater([s["display"] for s in samples])
        return with_source_text(batch, self.source_tokens)
