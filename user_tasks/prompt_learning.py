"""Task of FreeSeg's first stage: prompts are learned on regions of known classes, cut out of labelled photos."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from fairseq.logging import metrics
from fairseq.tasks import register_task

from ofaseg.data.mask_target_dataset import INSTANCE
from ofaseg.data.region_dataset import RegionDataset
from ofaseg.data.region_transforms import RegionEvaluation, RegionTraining
from ofaseg.data.regions import find_regions, sample_regions
from ofaseg.data.shards import ShardError
from ofaseg.evaluation.classification import GROUPS, TOP, accuracies, hit_counts
from ofaseg.structures import unwrap
from ofaseg.vocabulary import ClassVocabulary, VocabularyError
from user_tasks.base_tasks import in_order
from user_tasks.labelled_task import TRAINING_SPLITS, LabelledTask, LabelledTaskConfig
from user_tasks.learned_prompts import TASKS, LearnedPromptClasses, LearnedPromptOptions, parse_tasks

PUBLISHED_HEIGHT = (244, 224)
"""With `tall_crops`, training crops are so many times as high as wide."""


@dataclass
class PromptLearningConfig(LearnedPromptOptions, LabelledTaskConfig):
    label_offset: int = field(default=0, metadata={"help": "for TSV files without vocabulary.json: stored label of class 0"})
    tasks: str = field(
        default=",".join(TASKS), metadata={"help": "what regions are of, and prompts for: semantic,instance,panoptic or some of them"}
    )
    samples_per_class: int = field(
        default=64, metadata={"help": "regions of each class and task, drawn once; 0: all (published: COCO 64, VOC 128, ADE20K 32)"}
    )
    class_sorted: bool = field(
        default=False, metadata={"help": "train on regions in the order of task and class, unshuffled, as the published code does"}
    )
    task_of_first: bool = field(
        default=False, metadata={"help": "read all classes of a batch with the task of its first region, as the published code does"}
    )
    tall_crops: bool = field(
        default=False, metadata={"help": "training crops of 244 x 224 pixels (height x width), as in the published code"}
    )


@register_task("prompt_learning", dataclass=PromptLearningConfig)
class PromptLearningTask(LearnedPromptClasses, LabelledTask):
    """Trains prompts on regions of the base classes (FreeSeg, section 3.4); scores regions of all classes.

    Validation tells top-1 and top-5 accuracy, each region against the texts of all classes for its own task.

    Attributes:
        tasks: what regions are of, of `TASKS`.
        side: of what CLIP reads, pixels; the model sets it when it is built.
    """

    uses_ema = True
    """With --store-ema, validation uses the averaged weights."""

    def __init__(self, cfg: PromptLearningConfig, vocabulary: ClassVocabulary):
        super().__init__(cfg, vocabulary)
        self.tasks = parse_tasks(cfg.tasks)
        if cfg.samples_per_class < 0:
            raise ValueError(f"--samples-per-class {cfg.samples_per_class}: give a number from 0 (all) on")
        if INSTANCE in self.tasks and not any(vocabulary.thing):
            raise VocabularyError(
                "the vocabulary marks no class as a thing, which the task instance needs; mark them in vocabulary.json (thing), or leave "
                "instance out of --tasks"
            )
        if not self.trained_classes:
            raise VocabularyError("the vocabulary marks every class as novel, so there is none to train on; mark fewer in vocabulary.json")
        self.side = 0
        self.set_up_prompts(cfg, vocabulary.names)

    @classmethod
    def setup_task(cls, cfg: PromptLearningConfig, **kwargs):
        return cls(cfg, cls.resolve_vocabulary(cfg))

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Builds the model and reads its CLIP, unless a checkpoint, or `--pretrained`, brings it.

        Raises:
            CheckpointError: no CLIP is named, or a file does not fit.
        """
        model = super().build_model(cfg, from_checkpoint)
        self.side = model.config.image_size
        if not from_checkpoint:
            self.load_towers(model)
        return model

    # ---- data ----

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        """The regions of a split: for training some of each base class, for evaluation of every class.

        Raises:
            ShardError: the shards lack what a task needs, or have no region of a base class.
        """
        training, reader = split in TRAINING_SPLITS, self.reader(split)
        classes = self.trained_classes if training else None
        regions = sample_regions(find_regions(reader, self.vocabulary, self.tasks), self.cfg.samples_per_class, self.cfg.seed, classes)
        if not len(regions):
            raise ShardError(f"{reader.paths[0]}: no regions of base classes; check `novel` in vocabulary.json")
        self.datasets[split] = RegionDataset(
            reader,
            self.vocabulary,
            regions,
            self.training_transform() if training else RegionEvaluation(self.side),
            training=training,
            seed=self.cfg.seed,
            on_bad_sample=str(self.cfg.on_bad_sample),
            keep_order=self.cfg.class_sorted,
            task_of_first=self.cfg.task_of_first,
        )

    def training_transform(self) -> RegionTraining:
        height, width = PUBLISHED_HEIGHT if self.cfg.tall_crops else (1, 1)
        return RegionTraining((self.side * height // width, self.side))

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """fairseq's; with `class_sorted` its batches stay in order, too."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if self.cfg.class_sorted:
            iterator.shuffle, iterator.disable_shuffling = False, True
        return iterator

    # ---- steps ----

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        if ignore_grad:  # what a process without a batch repeats may be of validation, and so of a class held out
            sample = self.first_training_batch(sample["id"].device)
        return super().train_step(self.among_trained(sample), model, criterion, optimizer, update_num, ignore_grad=ignore_grad, **kwargs)

    def among_trained(self, sample: dict) -> dict:
        """A training batch whose targets are places among the trained classes, and what tells the model of them."""
        if len(self.trained_classes) == len(self.vocabulary):
            return sample
        places = np.full(len(self.vocabulary), -1)
        places[self.trained_classes] = np.arange(len(self.trained_classes))
        device = sample["target"].device
        inputs = sample["net_input"] | {"class_rows": torch.tensor(self.trained_classes, device=device)}
        return sample | {"net_input": inputs, "target": torch.from_numpy(places).to(device)[sample["target"]]}

    def valid_step(self, sample, model, criterion, ema_model=None):
        model = unwrap(ema_model if ema_model is not None else model)
        model.eval()
        device = next(model.parameters()).device
        if not sample["nsentences"]:
            zero = torch.zeros((), device=device)
            log = {"loss": zero, "sample_size": 0, "ntokens": 0, "nsentences": 0, "_bad_rows": len(sample["bad_rows"])}
            return zero, 0, in_order(log | {"_hits": torch.zeros(len(GROUPS), len(TOP) + 1, dtype=torch.long, device=device)})
        with torch.no_grad(), self.autocast(device):
            class_logits = model(**sample["net_input"])
            loss, sample_size, log = criterion.loss(class_logits, sample["target"])
        novel = torch.ones(len(self.vocabulary), dtype=torch.bool, device=device)
        novel[self.trained_classes] = False
        log["_bad_rows"] = len(sample.get("bad_rows", ()))
        return loss, sample_size, in_order(log | {"_hits": hit_counts(class_logits, sample["target"], novel)})

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        counts = [log["_hits"] for log in logging_outputs if "_hits" in log]
        if counts:
            metrics.log_scalar_sum("_hits", sum(counts).to("cpu", torch.double))
            for name in accuracies(sum(counts).tolist()):
                metrics.log_derived(name, partial(_accuracy, name))


def _accuracy(name: str, meters) -> float:
    """An accuracy from the summed counts that fairseq keeps as meter `_hits`."""
    return round(accuracies(meters["_hits"].sum.tolist())[name], 6)
