"""Task of contrastive training on photos with captions, with zero-shot retrieval and segmentation as validation."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Optional

import numpy as np
import torch
from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import register_task
from omegaconf import II, MISSING

from ofaseg import distributed
from ofaseg.data.caption_augmentation import CaptionAugmentation
from ofaseg.data.image_text_dataset import BATCH_ORDERS, ImageTextDataset
from ofaseg.data.image_text_source import ImageTextColumns
from ofaseg.data.image_text_sources import open_image_text
from ofaseg.data.image_text_transforms import ImageTextEvaluation, ImageTextTraining
from ofaseg.data.row_dataset import ON_BAD_SAMPLE
from ofaseg.evaluation.evaluator import SemanticEvaluator, evaluate_batches, rank_indices, spread
from ofaseg.evaluation.retrieval import SCORE_NAMES
from ofaseg.evaluation.retrieval_evaluator import RetrievalEvaluator
from ofaseg.structures import ImageTextOutput, unwrap
from user_tasks.base_tasks import VocabularyTask
from user_tasks.dense_segmentation import DenseSegmentationConfig, DenseSegmentationTask, PromptedClasses

SEGMENTATION_SCORES = ("mIoU", "mAcc", "aAcc")
SHARED_OPTIONS = ("text_tokenizer", "clip_bpe", "bert_vocab", "text_length", "templates", "zero_shot", "autocast", "seed")
"""What the zero-shot validation is told of the training."""


@dataclass
class ImageTextPretrainingConfig(FairseqDataclass):
    data: str = field(
        default=MISSING, metadata={"help": "photos with captions: shards, .parquet, .csv[:image folder], saved dataset; several by commas"}
    )
    image_column: str = field(default="", metadata={"help": "column of the photos in lists and tables (default: found by name and type)"})
    caption_columns: str = field(
        default="", metadata={"help": "column of the captions; several by commas (default: found by name and type)"}
    )
    image_id_column: str = field(
        default="", metadata={"help": "column of numbers or texts that are equal for one photo (default: image_id)"}
    )
    text_tokenizer: ChoiceEnum(["wordpiece", "clip_bpe"]) = field(
        default="wordpiece", metadata={"help": "how texts are cut: wordpiece (SimSeg, with --bert-vocab), clip_bpe (CLIP)"}
    )
    clip_bpe: str = field(
        default="", metadata={"help": "bpe_simple_vocab_16e6.txt.gz of CLIP, or its folder (default: the one inside open_clip_torch)"}
    )
    bert_vocab: str = field(default="", metadata={"help": "for wordpiece: vocab.txt of the text tower, or a folder with it"})
    text_length: int = field(default=25, metadata={"help": "longest caption in tokens, with both ends (SimSeg: 25, CLIP: 77)"})
    templates: str = field(default="imagenet80", metadata={"help": "sentences around class names: imagenet80, photo, name, or a text file"})
    patch_image_size: int = field(default=224, metadata={"help": "side of training crops in pixels (paper: 224)"})
    eval_image_size: int = field(default=0, metadata={"help": "side of the middle crop in validation, pixels (0: as in training)"})
    min_crop: float = field(default=0.6, metadata={"help": "least share of a photo's area in a training crop (published: 0.6)"})
    no_autoaugment: bool = field(default=False, metadata={"help": "training crops without AutoAugment's changes of colour and shape"})
    caption_augmentation: bool = field(default=False, metadata={"help": "mask, replace and drop word pieces of training captions"})
    batch_order: ChoiceEnum(BATCH_ORDERS) = field(
        default="shuffle", metadata={"help": "several data sets: rows shuffled together, or debias: each step from one set"}
    )
    sub_batch_size: int = field(
        default=0,
        metadata={"help": "decoupled gradient accumulation: pairs that memory holds at once, while the loss sees --batch-size (0: off)"},
    )
    seg_data: str = field(default="", metadata={"help": "labelled shards: every validation also gives the mIoU of zero-shot segmentation"})
    seg_split: str = field(default="val", metadata={"help": "which split of --seg-data"})
    seg_limit: int = field(default=0, metadata={"help": "only so many photos of it, evenly spread (0: all)"})
    seg_batch_size: int = field(default=8, metadata={"help": "photos at once in that validation"})
    zero_shot: str = field(default="auto", metadata={"help": "how classes are chosen in that validation, see the task dense_segmentation"})
    pretrained: str = field(default="", metadata={"help": "checkpoint to start from (official or ours); resuming ignores it"})
    autocast: ChoiceEnum(["none", "bf16"]) = field(default="none", metadata={"help": "mixed precision of the towers"})
    on_bad_sample: ChoiceEnum(ON_BAD_SAMPLE) = field(
        default="skip", metadata={"help": "a row that cannot be read: skip (take another one, counted as bad_rows) or raise"}
    )
    # a live loader would keep the epoch its workers were started with
    reuse_dataloader: bool = field(default=False, metadata={"help": "keep one data loader over epochs; needs --persistent-workers"})
    persistent_workers: bool = field(default=False, metadata={"help": "keep data workers alive after their epoch"})
    grouped_shuffling: bool = II("dataset.grouped_shuffling")
    seed: int = II("common.seed")


@register_task("image_text_pretraining", dataclass=ImageTextPretrainingConfig)
class ImageTextPretrainingTask(PromptedClasses, VocabularyTask):
    """Trains a dual encoder, SimSeg or CLIP, on pairs (SimSeg, section 3); label maps are never read in training."""

    uses_ema = True
    """With --store-ema, validation uses the averaged weights."""

    def __init__(self, cfg: ImageTextPretrainingConfig):
        if cfg.caption_augmentation and str(cfg.text_tokenizer) != "wordpiece":
            raise ValueError("--caption-augmentation changes word pieces: it goes with --text-tokenizer wordpiece alone")
        self.segmentation = self._segmentation_task(cfg) if cfg.seg_data else None
        super().__init__(cfg, self.segmentation.vocabulary if self.segmentation else None)
        self.set_up_prompts(cfg, self.vocabulary.names if self.vocabulary else ())
        self._retrieval = RetrievalEvaluator()
        self._validated = None  # the model of the last validation step
        self._scores: Optional[dict[str, float]] = None
        self._segmentation_scores: dict[str, float] = {}

    @classmethod
    def setup_task(cls, cfg: ImageTextPretrainingConfig, **kwargs):
        return cls(cfg)

    @staticmethod
    def _segmentation_task(cfg: ImageTextPretrainingConfig) -> DenseSegmentationTask:
        """The task whose validation gives mIoU on `seg_data`."""
        shared = {name: getattr(cfg, name) for name in SHARED_OPTIONS}
        side = cfg.eval_image_size or cfg.patch_image_size
        return DenseSegmentationTask.setup_task(DenseSegmentationConfig(data=cfg.seg_data, patch_image_size=side, **shared))

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Builds the model, from `--pretrained` weights where given; logs what matched.

        Raises:
            ValueError: the side of a crop is no multiple of the model's patch.
        """
        model = super().build_model(cfg, from_checkpoint)
        for option, side in (("--patch-image-size", self.cfg.patch_image_size), ("--eval-image-size", self.cfg.eval_image_size)):
            if side < 0 or side % model.grid_stride or (side == 0 and option == "--patch-image-size"):
                raise ValueError(f"{option} {side}: the model reads patches of {model.grid_stride} pixels; give a multiple of it")
        if self.cfg.pretrained and not from_checkpoint:
            from ofaseg.checkpoints import load_official  # checkpoints know tasks, so tasks import them late

            load_official(model, self.cfg.pretrained)
        return model

    def state_dict(self) -> dict:
        """What a checkpoint says of the task: the count of bad rows, and the classes of the zero-shot validation."""
        vocabulary = {"vocabulary": self.vocabulary.to_json()} if self.vocabulary else {}
        return super().state_dict() | vocabulary

    # ---- data ----

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        self.datasets[split] = self.image_text_dataset(split, training=split == "train")

    def image_text_dataset(self, split: str, training: bool, data: str = "") -> ImageTextDataset:
        """Pairs of a split, for training (augmented, shuffled) or evaluation (in order, all captions), of `data` or the task's."""
        cfg = self.cfg
        if training and str(cfg.batch_order) == "debias" and distributed.world_size() > 1 and not cfg.grouped_shuffling:
            raise ValueError("--batch-order debias on several processes needs --grouped-shuffling: each step's batches stay together")
        side = cfg.patch_image_size if training else cfg.eval_image_size or cfg.patch_image_size
        return ImageTextDataset(
            open_image_text(data or cfg.data, split, ImageTextColumns.from_options(cfg)),
            self.tokenize,
            ImageTextTraining(side, (cfg.min_crop, 1.0), not cfg.no_autoaugment)
            if training
            else ImageTextEvaluation(side * 324 // 288, side),
            training=training,
            seed=cfg.seed,
            on_bad_sample=str(cfg.on_bad_sample),
            augment_caption=CaptionAugmentation(self.text_tokenizer) if training and cfg.caption_augmentation else None,
            batch_order=str(cfg.batch_order),
            world_size=distributed.world_size(),
        )

    # ---- training ----

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, ema_model=None):
        size = self.cfg.sub_batch_size
        if not size or sample["nsentences"] <= size or ignore_grad:
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad, ema_model)
        model.train()
        model.set_num_updates(update_num)
        parts = [dict(zip(sample["net_input"], values)) for values in zip(*(v.split(size) for v in sample["net_input"].values()))]
        loss, pairs, log, targets = self._whole_batch_loss(parts, unwrap(model), criterion, update_num)
        for k, part in enumerate(parts):
            last = k + 1 == len(parts)
            with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
                with _part_seed(self.cfg.seed, update_num, k), self.autocast(sample["id"].device):
                    output = model(**part)
                # the product's gradient with respect to the vectors is the whole batch's, whatever its value
                optimizer.backward(sum((value.float() * target).sum() for value, target in zip(output, targets[k])))
        log["_bad_rows"] = log["_bad_training_rows"] = len(sample.get("bad_rows", ()))
        return loss, pairs, log

    def _whole_batch_loss(self, parts: list[dict], model, criterion, update_num: int):
        """(loss, pairs, log, targets): the loss of the whole batch, and for each part its gradients with respect to the outputs.

        A first pass without gradient makes the vectors part by part; the second pass repeats its random numbers.
        """
        outputs = []
        with torch.no_grad():
            for k, part in enumerate(parts):
                with _part_seed(self.cfg.seed, update_num, k), self.autocast(part["image"].device):
                    outputs.append(model(**part))
        images, texts = (torch.cat([output[i] for output in outputs]).float().requires_grad_() for i in (0, 1))
        temperature = outputs[0].temperature.detach().clone().requires_grad_()
        with torch.enable_grad():
            loss, pairs, log = criterion.loss(ImageTextOutput(images, texts, temperature))
            image_grad, text_grad, temperature_grad = torch.autograd.grad(loss, (images, texts, temperature), allow_unused=True)
        sizes = [len(output.image_embedding) for output in outputs]
        shares = [temperature_grad / len(parts)] * len(parts)
        return loss.detach(), pairs, log, list(zip(image_grad.split(sizes), text_grad.split(sizes), shares))

    # ---- validation ----

    def begin_valid_epoch(self, epoch, model) -> None:
        super().begin_valid_epoch(epoch, model)
        self._retrieval.reset()
        self._scores, self._segmentation_scores = None, {}

    def valid_step(self, sample, model, criterion, ema_model=None):
        model = self._validated = unwrap(ema_model if ema_model is not None else model)
        model.eval()
        self._scores = None
        device = next(model.parameters()).device
        with torch.no_grad(), self.autocast(device):
            if sample["nsentences"]:
                image, text = model.embed_image(sample["net_input"]["image"]), model.embed_text(**sample["caption_input"])
                self._retrieval.update(image.float(), text.float(), sample)
                pairs = {name: value for name, value in sample["net_input"].items() if name != "image"}
                output = ImageTextOutput(image, model.embed_text(**pairs), model.clamped_temperature())
            else:  # this rank has run out of batches before the others, or all rows were unreadable
                nothing = torch.zeros(0, model.config.projection_dim, device=device)
                output = ImageTextOutput(nothing, nothing, model.clamped_temperature())
            loss, pairs, log = criterion.loss(output)
        log["_bad_rows"] = len(sample.get("bad_rows", ()))
        return loss, pairs, log

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        if not criterion.training:
            for name in (*SCORE_NAMES, *(SEGMENTATION_SCORES if self.segmentation else ())):
                metrics.log_derived(name, partial(self._validation_score, name))

    def _validation_score(self, name: str, meters) -> float:
        """A score of the whole validation subset, for fairseq's statistics (the best checkpoint may be chosen by it).

        All ranks ask for all scores together. While `meters` are still being added to, it is one step that asks.
        """
        if any(meters is active for active in metrics.get_active_aggregators()):
            return float("nan")
        if self._scores is None:
            self._scores = self._retrieval.compute(next(self._validated.parameters()).device)
            self._retrieval.reset()
            if self.segmentation is not None:
                self._segmentation_scores = self._segmentation_scores or self.segmentation_scores(self._validated)
                self._scores |= self._segmentation_scores
        return round(self._scores.get(name, float("nan")), 5)

    def segmentation_scores(self, model) -> dict[str, float]:
        """mIoU, mAcc and aAcc, 0..1, of zero-shot segmentation of `seg_data`, shared by the ranks."""
        task, cfg = self.segmentation, self.cfg
        dataset = task.photo_dataset(cfg.seg_split, training=False)
        rows = spread(len(dataset), cfg.seg_limit or len(dataset))
        mine = [rows[i] for i in rank_indices(len(rows))]
        parts = (mine[k : k + cfg.seg_batch_size] for k in range(0, len(mine), cfg.seg_batch_size))
        batches = (dataset.collater([dataset[i] for i in part]) for part in parts)
        evaluator, post = SemanticEvaluator(task.vocabulary), task.validation_posts()["_confusion"]
        model.eval()
        task.give_classes(model)  # averaged weights are never in training mode, so their class vectors would be old
        run = evaluate_batches(batches, lambda batch: task.predict_batch(model, batch["net_input"], batch["native_sizes"], post), evaluator)
        return {name: run.scores[name] for name in SEGMENTATION_SCORES}


def _part_seed(seed: int, update_num: int, part: int) -> utils.set_torch_seed:
    """Context with the random numbers of one part of a batch, the same in both passes over it."""
    return utils.set_torch_seed(int(np.random.SeedSequence((seed, update_num, part)).generate_state(1)[0]))
