"""What every segmentation task shares: vocabulary, datasets, autocast, validation by areas, prediction."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from omegaconf import II, MISSING
from torch import Tensor

from ofaseg.data import transforms
from ofaseg.data.segmentation_dataset import SegmentationDataset
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.evaluation import postprocess, semantic
from ofaseg.structures import DenseOutput, SegmentationOutput
from ofaseg.vocabulary import ClassVocabulary, resolve_vocabulary

logger = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class SegmentationTaskConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "folder of shards: <split>-*.parquet or .tsv, and vocabulary.json"})
    class_names: str = field(default="", metadata={"help": "class names: a file with one per line, or a comma-separated list"})
    rename_classes: bool = field(default=False, metadata={"help": "--class-names re-words the shards' classes one by one"})
    selected_cols: str = field(default="", metadata={"help": "positions of image, label map and id in a TSV row, such as 0,1,2"})
    label_offset: int = field(default=1, metadata={"help": "for TSV files without vocabulary.json: stored label of class 0 (IFSeg: 1)"})
    patch_image_size: int = field(default=512, metadata={"help": "short side of the photos the model sees, pixels"})
    autocast: ChoiceEnum(["none", "bf16", "fp16"]) = field(default="none", metadata={"help": "mixed precision of forward and loss"})
    strict_rows: bool = field(default=False, metadata={"help": "stop at the first bad row instead of leaving it out"})
    no_photo_augmentation: bool = field(default=False, metadata={"help": "supervised training without scale, crop, flip and colour jitter"})
    resnet_topk: int = field(default=3, metadata={"help": "K of feature propagation in evaluation"})
    resnet_iters: int = field(default=0, metadata={"help": "iterations of feature propagation in evaluation, 0 = off (paper: 25)"})
    resnet_prob_temperature: float = field(default=1.0, metadata={"help": "temperature of the propagated probabilities"})
    # a live loader would keep the epoch its workers were started with
    reuse_dataloader: bool = field(default=False, metadata={"help": "keep data workers over epochs"})
    seed: int = II("common.seed")


class SegmentationTask(FairseqTask):
    """Base of the dense tasks; sub-classes say which model inputs a sample becomes.

    Validation runs the model once per batch and sums, per class, the areas of intersection, prediction and label at
    native size; `mIoU` and its relatives are derived from the sums over all batches and ranks.
    """

    uses_ema = True
    """With --store-ema, validation uses the averaged weights."""

    def __init__(self, cfg: SegmentationTaskConfig, vocabulary: ClassVocabulary):
        super().__init__(cfg)
        self.vocabulary = vocabulary

    @classmethod
    def resolve_vocabulary(cls, cfg: SegmentationTaskConfig) -> ClassVocabulary:
        """Names from --class-names or the shards; raises VocabularyError when neither or both disagree."""
        shard_vocabulary = load_vocabulary(cfg.data)
        vocabulary = resolve_vocabulary(cfg.class_names, shard_vocabulary, cfg.rename_classes)
        if shard_vocabulary is None:
            ignore_label = 0 if cfg.label_offset else None
            vocabulary = ClassVocabulary(vocabulary.names, label_offset=cfg.label_offset, ignore_label=ignore_label, source=vocabulary.source)
        return vocabulary

    # ---- data ----

    def reader(self, split: str) -> ShardReader:
        return ShardReader.for_split(self.cfg.data, split, selected_cols=self.cfg.selected_cols or None)

    def photo_dataset(self, split: str, training: bool) -> SegmentationDataset:
        """The dataset of a split, for training (augmented, shuffled) or evaluation (in order, native labels)."""
        augment = training and not self.cfg.no_photo_augmentation
        return self.dataset_class()(
            self.reader(split),
            self.vocabulary,
            self.training_transform if augment else self.crop_transform if training else self.evaluation_transform,
            training=training,
            seed=self.cfg.seed,
            strict=self.cfg.strict_rows,
            batch_size_key=self.evaluation_size,
            **self.dataset_arguments(),
        )

    def dataset_class(self):
        return SegmentationDataset

    def dataset_arguments(self) -> dict:
        return {}

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        self.datasets[split] = self.photo_dataset(split, training=split == "train")

    def training_transform(self, sample: dict, rng: np.random.Generator) -> dict:
        """Random scale 0.5..2, crop, flip, colour jitter (digest 3.3)."""
        size = self.cfg.patch_image_size
        sample = transforms.random_scale(sample, rng, short=size, long=4 * size, ratio=(0.5, 2.0), min_size=size)
        sample = transforms.random_crop(sample, rng, size=size)
        sample = transforms.random_flip(sample, rng)
        return transforms.photometric_distortion(sample, rng)

    def crop_transform(self, sample: dict, rng: np.random.Generator) -> dict:
        """Without augmentation: short side to the model's size, then a square crop, so that photos stack."""
        sample = transforms.resize_short_side(sample, self.cfg.patch_image_size, 4 * self.cfg.patch_image_size)
        return transforms.random_crop(sample, rng, size=self.cfg.patch_image_size)

    def evaluation_transform(self, sample: dict, rng: Optional[np.random.Generator] = None) -> dict:
        """Short side to `patch_image_size`, long side at most 4 times that (512 / 2048 in the paper); only the image."""
        return transforms.resize_short_side({"image": sample["image"]}, self.cfg.patch_image_size, 4 * self.cfg.patch_image_size)

    def evaluation_size(self, height: int, width: int) -> tuple[int, int]:
        return transforms.short_side_size(height, width, self.cfg.patch_image_size, 4 * self.cfg.patch_image_size)

    def encode_image_for_predict(self, image: np.ndarray) -> dict:
        """A photo, (H, W, 3) uint8 RGB, as a batch of one."""
        sample = transforms.to_tensors(self.evaluation_transform({"image": image}))
        sample.update(id=0, native_size=image.shape[:2])
        dataset = self.dataset_class()(None, self.vocabulary, None, training=False, **self.dataset_arguments())
        return dataset.collater([sample])

    # ---- steps ----

    def autocast(self, device: torch.device):
        """One autocast context per step: its cache of cast weights lives until the context ends."""
        if self.cfg.autocast == "none":
            return nullcontext()
        return torch.autocast(device.type, dtype=AUTOCAST[str(self.cfg.autocast)])

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, ema_model=None):
        model.train()
        model.set_num_updates(update_num)
        with self.autocast(sample["id"].device):
            loss, sample_size, logging_output = criterion(model, sample)
        if ignore_grad:
            loss = loss * 0
        optimizer.backward(loss)
        if "display" in sample:
            logging_output.update(self.display_areas(model, sample["display"]))
        return loss, sample_size, logging_output

    def display_areas(self, model, display: dict) -> dict[str, Tensor]:
        """Areas of the model on training photos, for curves only; no gradient."""
        model.eval()
        with torch.no_grad(), self.autocast(display["id"].device):
            output = self.unwrap(model)(**display["net_input"])
            predictions = [postprocess.argmax_at_size(logits, display["target"].shape[-2:]) for logits in output.class_logits.float()]
        model.train()
        return self.areas("area", predictions, list(display["target"]))

    @staticmethod
    def unwrap(model):
        """The module itself: a forward without gradient must not pass through DDP, which counts forwards."""
        return model.module if hasattr(model, "module") and isinstance(model.module, torch.nn.Module) else model

    def valid_step(self, sample, model, criterion, ema_model=None):
        model = self.unwrap(ema_model if ema_model is not None else model)
        model.eval()
        device = next(model.parameters()).device
        if not sample["nsentences"]:
            return self._empty_step(sample, device)
        with torch.no_grad(), self.autocast(device):
            output = model(**sample["net_input"])
            output = DenseOutput(output.class_logits.float(), output.features)
            loss, sample_size, logging_output = criterion.loss(output, sample)
        logging_output["_bad_rows"] = len(sample.get("bad_rows", ()))
        for name, predictions in self.label_maps(output, sample["native_sizes"]).items():
            logging_output.update(self.areas(name, predictions, sample["native_label_maps"]))
        return loss, sample_size, logging_output

    def _empty_step(self, sample, device):
        """A batch whose rows were all unreadable adds nothing but their count."""
        zero = torch.zeros((), device=device)
        areas = torch.zeros(3, len(self.vocabulary), dtype=torch.float64, device=device)
        log = {"loss": zero, "sample_size": zero, "ntokens": 0, "nsentences": 0, "_bad_rows": len(sample["bad_rows"])}
        log.update({f"_{name}": areas for name in self.prediction_names()})
        return zero, zero, log

    def prediction_names(self) -> list[str]:
        return ["area"] + (["area_propagated"] if self.cfg.resnet_iters > 0 else [])

    def label_maps(self, output: DenseOutput, native_sizes) -> dict[str, list[Tensor]]:
        """Label maps at native size: `area` from the logits, `area_propagated` after feature propagation."""
        maps = {"area": [postprocess.argmax_at_size(logits, size) for logits, size in zip(output.class_logits, native_sizes)]}
        if self.cfg.resnet_iters > 0:
            probs = self.propagated_probs(output)
            maps["area_propagated"] = [postprocess.argmax_at_size(p, size) for p, size in zip(probs, native_sizes)]
        return maps

    def propagated_probs(self, output: DenseOutput) -> Tensor:
        """(B, K, h, w) probabilities after feature propagation (IFSeg section 3.4)."""
        probs = (output.class_logits / self.cfg.resnet_prob_temperature).softmax(dim=1)
        return postprocess.feature_propagation(probs, output.features.float(), self.cfg.resnet_topk, self.cfg.resnet_iters)

    def areas(self, name: str, predictions: list[Tensor], label_maps: list[Tensor]) -> dict[str, Tensor]:
        """{`_name`: (3, K) float64 sums of intersection, prediction and label area}, in pixels."""
        total = sum(semantic.areas(p, label.to(p.device), len(self.vocabulary)) for p, label in zip(predictions, label_maps))
        return {f"_{name}": total.double()}

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        bad_rows = sum(int(log.get("_bad_rows", 0)) for log in logging_outputs)
        if bad_rows:
            metrics.log_scalar_sum("bad_rows", bad_rows)
        for key, suffix in (("_area", ""), ("_area_propagated", "_propagated")):
            sums = [log[key] for log in logging_outputs if key in log]
            if not sums:
                continue
            metrics.log_scalar_sum(key, sum(sums).cpu())
            for score in ("mIoU", "mAcc", "aAcc"):
                metrics.log_derived(score + suffix, _derived(score, key))

    # ---- prediction ----

    def predict_batch(self, model, net_input: dict, native_sizes, with_scores: bool = False) -> list[SegmentationOutput]:
        """Segments a batch at native sizes, with feature propagation where the configuration asks for it.

        Args:
            net_input: as collated; moved to the model's device here.
            native_sizes: B pairs (H, W).
            with_scores: also return (K, H, W) probabilities.
        """
        device = next(model.parameters()).device
        net_input = {name: value.to(device, non_blocking=True) for name, value in net_input.items()}
        with torch.no_grad(), self.autocast(device):
            output = model.predict(**net_input)
        if self.cfg.resnet_iters > 0:
            scores = self.propagated_probs(output)
        else:
            scores = output.class_logits.softmax(dim=1) if with_scores else output.class_logits
        results = []
        for score, size in zip(scores, native_sizes):
            full = postprocess.resize_scores(score, size) if with_scores else None
            label_map = full.argmax(dim=0) if with_scores else postprocess.argmax_at_size(score, size)
            results.append(SegmentationOutput(label_map=label_map, class_scores=full))
        return results

    @property
    def source_dictionary(self):
        return None

    @property
    def target_dictionary(self):
        return None


def _derived(score: str, key: str):
    def compute(meters) -> float:
        intersect, prediction, label = (meters[key].sum if hasattr(meters[key], "sum") else meters[key]).double()
        return round(float(semantic.scores_from_areas(intersect, prediction, label)[score]), 6)

    return compute
