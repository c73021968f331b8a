"""What every segmentation task shares: vocabulary, datasets, validation by areas, prediction."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Optional

import numpy as np
import torch
from fairseq.logging import metrics
from torch import Tensor

from ofaseg.data import transforms
from ofaseg.data.mask_target_dataset import SEMANTIC
from ofaseg.data.segmentation_dataset import SegmentationDataset
from ofaseg.evaluation import postprocess, semantic, tiling
from ofaseg.structures import DenseOutput, SegmentationOutput, unwrap
from ofaseg.vocabulary import ClassVocabulary
from user_tasks.base_tasks import in_order
from user_tasks.labelled_task import TRAINING_SPLITS, LabelledTask, LabelledTaskConfig

logger = logging.getLogger(__name__)

LONG_SIDE = 4
"""Photos are scaled until the short side is the model's size or the long side this many times that."""


@dataclass
class SegmentationTaskConfig(LabelledTaskConfig):
    patch_image_size: int = field(default=512, metadata={"help": "short side of the photos the model sees, pixels"})
    no_photo_augmentation: bool = field(default=False, metadata={"help": "supervised training without scale, crop, flip and colour jitter"})
    resnet_topk: int = field(default=3, metadata={"help": "K of feature propagation in evaluation"})
    resnet_iters: int = field(default=0, metadata={"help": "iterations of feature propagation in evaluation, 0 = off (paper: 25)"})
    resnet_prob_temperature: float = field(default=1.0, metadata={"help": "temperature of the propagated probabilities"})
    window: int = field(default=0, metadata={"help": "prediction by sliding windows of so many pixels, 0 = whole photos"})
    window_stride: int = field(default=0, metadata={"help": "pixels between windows, 0 = half a window"})
    scales: str = field(default="", metadata={"help": "prediction averaged over factors of the photo's size, such as 0.75,1,1.25"})


class SegmentationTask(LabelledTask):
    """Base of the dense tasks; sub-classes say which model inputs a sample becomes.

    Validation runs the model once per batch and counts (label, prediction) pairs at native size; `mIoU` and its relatives
    are derived from the sums over all batches and ranks.
    """

    image_key = "image"
    """The entry of `net_input` that holds the photos."""

    reads_class_order = False
    """Whether the model reads the class names as one text, in their order, so that scores may depend on it."""

    output_kinds = (SEMANTIC,)
    """What `predict_batch` can make."""

    trained_vocabulary: Optional[ClassVocabulary] = None
    """The classes that a restored checkpoint was trained with, where it tells."""

    uses_ema = True
    """With --store-ema, validation uses the averaged weights."""

    # ---- data ----

    def photo_dataset(self, split: str, training: bool, **options) -> SegmentationDataset:
        """The dataset of a split, for training (augmented, shuffled) or evaluation (in order, native labels); `options` as it takes."""
        augment = training and not self.cfg.no_photo_augmentation
        return self.dataset_class()(
            self.reader(split),
            self.vocabulary,
            self.training_transform if augment else self.crop_transform if training else self.evaluation_transform,
            training=training,
            seed=self.cfg.seed,
            on_bad_sample=str(self.cfg.on_bad_sample),
            batch_size_key=self.evaluation_size,
            **self.dataset_arguments(),
            **options,
        )

    def dataset_class(self):
        return SegmentationDataset

    def dataset_arguments(self) -> dict:
        return {}

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        self.datasets[split] = self.photo_dataset(split, training=split in TRAINING_SPLITS)

    def training_transform(self, sample: dict, rng: np.random.Generator) -> dict:
        """Random scale 0.5..2, crop, flip, colour jitter (as the published code augments)."""
        size = self.cfg.patch_image_size
        return transforms.random_scale_crop_flip(sample, rng, size=size, long=LONG_SIDE * size)

    def crop_transform(self, sample: dict, rng: np.random.Generator) -> dict:
        """Without augmentation: short side to the model's size, then a square crop, so that photos stack."""
        size = self.cfg.patch_image_size
        return transforms.random_crop(transforms.resize_short_side(sample, size, LONG_SIDE * size), rng, size, cat_max_ratio=1.0)

    def evaluation_transform(self, sample: dict, rng: Optional[np.random.Generator] = None) -> dict:
        """Only the image: short side to `patch_image_size`, long side at most 4 times that (512 / 2048 in the paper)."""
        size = self.cfg.patch_image_size
        return transforms.resize_short_side({"image": sample["image"]}, size, LONG_SIDE * size)

    def evaluation_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that `evaluation_transform` gives a photo."""
        return transforms.short_side_size(height, width, self.cfg.patch_image_size, LONG_SIDE * self.cfg.patch_image_size)

    def encode_image_for_predict(self, image: np.ndarray) -> dict:
        """A photo, (H, W, 3) uint8 RGB, as a batch of one."""
        sample = transforms.to_tensors(self.evaluation_transform({"image": image}))
        sample.update(id=0, native_size=image.shape[:2])
        dataset = self.dataset_class()(None, self.vocabulary, None, training=False, **self.dataset_arguments())
        return dataset.collater([sample])

    # ---- steps ----

    def train_step(self, sample, model, *args, **kwargs):
        if kwargs.get("ignore_grad") and "target" not in sample:
            # a rank without a batch of its own repeats the first one of the dataset that was opened last: validation, say
            sample = self.first_training_batch(sample["id"].device)
        loss, sample_size, logging_output = super().train_step(sample, model, *args, **kwargs)
        if "display" in sample:
            logging_output.update(self.display_counts(model, sample["display"]))
        return loss, sample_size, logging_output

    def display_counts(self, model, display: dict) -> dict[str, Tensor]:
        """Confusion counts of the model on training photos, for curves only; no gradient."""
        model.eval()
        with torch.no_grad(), self.autocast(display["id"].device):
            output = unwrap(model)(**display["net_input"])
        sizes = [tuple(display["target"].shape[-2:])] * display["nsentences"]
        counts = self.counts("_confusion", postprocess.segmentations(output, sizes), display["target"])
        model.train()
        return counts

    def valid_step(self, sample, model, criterion, ema_model=None):
        model = unwrap(ema_model if ema_model is not None else model)
        model.eval()
        device = next(model.parameters()).device
        if not sample["nsentences"]:
            loss, sample_size, log = self._empty_step(sample, device)
            return loss, sample_size, in_order(log)
        with torch.no_grad(), self.autocast(device):
            output = model(**sample["net_input"])
            output = output._replace(class_logits=output.class_logits.float())
            loss, sample_size, logging_output = criterion.loss(output, sample)
        logging_output["_bad_rows"] = len(sample.get("bad_rows", ()))
        for key, post in self.validation_posts().items():
            images = self.photo_pixels(model, sample["net_input"], post)
            results = postprocess.segmentations(output, sample["native_sizes"], post, images=images)
            logging_output.update(self.counts(key, results, sample["native_label_maps"]))
        return loss, sample_size, in_order(logging_output)

    def _empty_step(self, sample, device):
        """A batch whose rows were all unreadable adds nothing but their count."""
        zero = torch.zeros((), device=device)
        counts = torch.zeros(len(self.vocabulary) ** 2 + 2, dtype=torch.long, device=device)
        log = {"loss": zero, "sample_size": zero, "ntokens": 0, "nsentences": 0, "_bad_rows": len(sample["bad_rows"])}
        log.update({key: counts for key in self.validation_posts()})
        return zero, zero, log

    def post_process(self, **changes) -> postprocess.PostProcess:
        """The post-processing that the configuration asks for."""
        cfg = self.cfg
        defaults = dict(resnet_topk=cfg.resnet_topk, resnet_iters=cfg.resnet_iters, resnet_prob_temperature=cfg.resnet_prob_temperature)
        defaults |= dict(window=cfg.window, window_stride=cfg.window_stride, scales=tiling.parse_scales(cfg.scales))
        return postprocess.PostProcess(**(defaults | changes))

    def validation_posts(self) -> dict[str, postprocess.PostProcess]:
        """Logging key -> post-processing: raw scores always, feature propagation beside them when it is on."""
        posts = {"_confusion": postprocess.PostProcess()}
        if self.cfg.resnet_iters > 0:
            posts["_confusion_propagated"] = self.post_process()
        return posts

    def counts(self, key: str, results: list[SegmentationOutput], label_maps) -> dict[str, Tensor]:
        """{key: bins of `semantic.bin_counts`}, summed over the photos of a batch, on the device."""
        pairs = [(result.label_map, label_map.to(result.label_map.device)) for result, label_map in zip(results, label_maps)]
        return {key: sum(semantic.bin_counts(prediction, label, len(self.vocabulary)) for prediction, label in pairs)}

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        for key in ("_confusion", "_confusion_propagated"):
            sums = [log[key] for log in logging_outputs if key in log]
            if sums:
                metrics.log_scalar_sum(key, sum(sums).to("cpu", torch.double))
                for score in ("mIoU", "mAcc", "aAcc"):
                    metrics.log_derived(score + key.removeprefix("_confusion"), partial(_score, score, key, len(self.vocabulary)))

    # ---- prediction ----

    def predict_batch(
        self, model, net_input: dict, native_sizes, post: Optional[postprocess.PostProcess] = None
    ) -> list[SegmentationOutput]:
        """Segments a batch at native sizes.

        Args:
            net_input: as collated; moved to the model's device here.
            native_sizes: B pairs (H, W).
            post: post-processing; None for what the configuration asks for.
        """
        post = post or self.post_process()
        device = next(model.parameters()).device
        net_input = {name: value.to(device, non_blocking=True) for name, value in net_input.items()}
        with torch.no_grad(), self.autocast(device):
            output = self._output(model, net_input, post)
            flipped = self._output(model, self.mirrored(net_input), post) if post.flip_average else None
            images = self.photo_pixels(model, net_input, post)
        return postprocess.segmentations(output, native_sizes, post, flipped, images)

    def _output(self, model, net_input: dict, post: postprocess.PostProcess) -> DenseOutput:
        """What the model says of a batch, by the windows and scales of `post`."""
        if not post.window and post.scales == (1.0,):
            return model.predict(**net_input)

        def predict(image: Tensor) -> DenseOutput:
            return model.predict(**net_input | {self.image_key: image})

        image = net_input[self.image_key]
        return tiling.tiled(predict, image, model.grid_stride, post.window, post.window_stride, post.scales)

    def photo_pixels(self, model, net_input: dict, post: postprocess.PostProcess) -> Optional[Tensor]:
        """(B, H, W, 3) uint8 photos at the model's size, where `post` reads them; else None."""
        if post.refine == "none" and post.candidates is None:
            return None
        return model.pixels(net_input[self.image_key])

    def mirrored(self, net_input: dict) -> dict:
        """The same batch with its photos mirrored left to right."""
        return net_input | {self.image_key: net_input[self.image_key].flip(-1)}


def _score(score: str, key: str, num_classes: int, meters) -> float:
    """A score from the summed confusion counts that fairseq keeps as meter `key`."""
    matrix = semantic.matrix_from_bins(meters[key].sum, num_classes)
    return round(semantic.semantic_scores(matrix)[score], 6)
