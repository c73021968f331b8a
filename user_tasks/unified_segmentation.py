"""Task of models that make semantic, instance and panoptic masks with one set of weights (FreeSeg)."""

from dataclasses import dataclass, field
from functools import partial
from typing import Optional, Sequence

import numpy as np
import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task

from ofaseg.data import transforms
from ofaseg.data.mask_target_dataset import SEMANTIC, MaskTargetDataset, mask_targets
from ofaseg.evaluation.postprocess import PostProcess
from ofaseg.models.prompt_tuning import SCOPES, PromptTuner
from ofaseg.structures import MaskOutput, unwrap
from ofaseg.subclasses.label_set import LabelSetError
from ofaseg.vocabulary import ClassVocabulary
from user_tasks import subclass_options
from user_tasks.base_tasks import in_order
from user_tasks.learned_prompts import TASKS, LearnedPromptClasses, LearnedPromptOptions, parse_tasks
from user_tasks.mask_outputs import MaskOutputOptions, MaskOutputs, with_things
from user_tasks.segmentation_task import LONG_SIDE, SegmentationTask, SegmentationTaskConfig

SCALES = tuple(k / 10 for k in range(5, 16))
"""Short sides of training photos are so many times the crop's, unless the configuration names some (COCO: 320, 384 ... 960 for 640)."""


@dataclass
class UnifiedSegmentationConfig(MaskOutputOptions, subclass_options.SubclassNameOptions, LearnedPromptOptions, SegmentationTaskConfig):
    patch_image_size: int = field(default=640, metadata={"help": "side of training crops, short side of test photos (COCO: 640)"})
    short_sides: str = field(
        default="", metadata={"help": "short sides of training photos in pixels, 320,384,448; default: 0.5, 0.6 ... 1.5 times the crop's"}
    )
    label_offset: int = field(default=0, metadata={"help": "for TSV files without vocabulary.json: stored label of class 0"})
    tasks: str = field(
        default=",".join(TASKS), metadata={"help": "what is trained, one drawn per update: semantic,instance,panoptic or some of them"}
    )
    image_checkpoint: str = field(default="", metadata={"help": "weights of the image encoder to start from (ImageNet's)"})
    prompt_checkpoint: str = field(default="", metadata={"help": "checkpoint of prompt learning, whose prompts are taken"})
    tuning_steps: int = field(
        default=0, metadata={"help": "steps of test-time prompt tuning per photo and task, on the entropy of novel classes; 0: none"}
    )
    tuning_lr: float = field(default=1e-3, metadata={"help": "learning rate of prompt tuning (published: 0.001)"})
    tuning_threshold: float = field(
        default=0.5, metadata={"help": "tau: queries are tuned on whose entropy is below this share of the largest possible one"}
    )
    tuning_scope: ChoiceEnum(SCOPES) = field(
        default="image", metadata={"help": "image: prompts are reset after every photo; set: they go on, on each process of its own"}
    )
    tuning_classes: ChoiceEnum(["novel", "all"]) = field(
        default="novel", metadata={"help": "classes whose entropy is taken: novel ones as the vocabulary marks them, or all (own words)"}
    )


@register_task("unified_segmentation", dataclass=UnifiedSegmentationConfig)
class UnifiedSegmentationTask(MaskOutputs, LearnedPromptClasses, SegmentationTask):
    """Trains on masks of a kind drawn for each update, the same on all processes (FreeSeg, section 3.1); scores and predicts class maps.

    Classes that the vocabulary marks as novel are kept from training: neither their masks nor their texts play a part.

    Attributes:
        tasks: what is trained, of `TASKS`.
        short_sides: one of which every training photo's short side gets, in pixels.
        class_words: with `subclasses`, for each class the token ids of the names that its vector is the mean of; else None.
        tuner: of prompts at test time; None without `tuning_steps`.
    """

    def __init__(self, cfg: UnifiedSegmentationConfig, vocabulary: ClassVocabulary):
        super().__init__(cfg, with_things(vocabulary, cfg.things))
        self.tasks = parse_tasks(cfg.tasks)
        self.short_sides = parse_sides(cfg.short_sides) or tuple(int(cfg.patch_image_size * scale + 0.5) for scale in SCALES)
        self.set_up_outputs(cfg)
        self.set_up_prompts(cfg, vocabulary.names)
        self.class_words = self._class_words()
        tuning = (cfg.tuning_steps, cfg.tuning_lr, cfg.tuning_threshold, str(cfg.tuning_scope))
        self.tuner = PromptTuner(*tuning) if cfg.tuning_steps else None

    @classmethod
    def setup_task(cls, cfg: UnifiedSegmentationConfig, **kwargs):
        return cls(cfg, cls.resolve_vocabulary(cfg))

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Builds the model and reads the files of its parts, unless a checkpoint, or `--pretrained`, brings them.

        Raises:
            CheckpointError: no CLIP is named, or a file does not fit.
        """
        from ofaseg.checkpoints import freeseg  # checkpoints know tasks, so tasks import them late

        model = super().build_model(cfg, from_checkpoint)
        self._give_words(model)
        self.size_multiple = model.config.size_divisibility
        if from_checkpoint:
            return model
        model.first_task = self.drawn_task(0)
        self.trained_vocabulary = self.vocabulary
        self.load_towers(model)
        if self.cfg.image_checkpoint:
            freeseg.load_image_encoder(model, self.cfg.image_checkpoint)
        if self.cfg.prompt_checkpoint:
            freeseg.load_prompts(model, self.cfg.prompt_checkpoint)
        return model

    # ---- classes ----

    def set_class_names(self, vocabulary: ClassVocabulary) -> None:
        """As `LearnedPromptClasses.set_class_names`. Raises LabelSetError when the task's subclasses are of other classes."""
        super().set_class_names(vocabulary)
        self.class_words = self._class_words()

    def give_classes(self, model) -> None:
        """Tells a model the task's classes, and their finer names."""
        super().give_classes(model)
        self._give_words(model)

    def _class_words(self) -> Optional[list[list[list[int]]]]:
        label_set = subclass_options.load_subclasses(self.cfg, self.vocabulary.names)
        return None if label_set is None else subclass_options.class_words(self.cfg, label_set, self._name_tokens)

    def _name_tokens(self, name: str) -> list[int]:
        """Token ids of a name without start and end."""
        return self.prompts_of([name])[0][0][1:-1]

    def _give_words(self, model) -> None:
        """Raises LabelSetError for a finer name that does not fit beside the prompts."""
        if self.class_words is None:
            return
        try:
            model.set_class_words(self.class_words)
        except ValueError as error:
            raise LabelSetError(f"{self.cfg.subclasses}: {error}") from error

    # ---- data ----

    def dataset_class(self):
        rows = np.full(len(self.vocabulary), -1)
        rows[self.trained_classes] = np.arange(len(self.trained_classes))
        return partial(MaskTargetDataset, tasks=self.tasks, class_rows=rows)

    def training_transform(self, sample: dict, rng: np.random.Generator) -> dict:
        """Short side drawn from `short_sides`, crop, flip, colour jitter; crops are taken wherever they fall, as published."""
        size = self.cfg.patch_image_size
        sample = transforms.resize_short_side(sample, int(rng.choice(self.short_sides)), LONG_SIDE * size, antialias=True)
        sample = transforms.random_crop(sample, rng, size, cat_max_ratio=1.0)
        return transforms.photometric_distortion(transforms.random_flip(sample, rng), rng)

    def evaluation_transform(self, sample: dict, rng: Optional[np.random.Generator] = None) -> dict:
        """As in other tasks, with antialiasing, as published."""
        size = self.cfg.patch_image_size
        return transforms.resize_short_side({"image": sample["image"]}, size, LONG_SIDE * size, antialias=True)

    # ---- steps ----

    def drawn_task(self, update_num: int) -> str:
        """The task of an update: the same on all processes, in every batch of the update, and after resuming."""
        return str(np.random.default_rng((self.cfg.seed, update_num)).choice(self.tasks))

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        if ignore_grad and "target" not in sample:
            sample = self.first_training_batch(sample["id"].device)  # see SegmentationTask.train_step
        sample = self.with_masks(sample, self.drawn_task(update_num)) | {"counted": not ignore_grad}
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad=ignore_grad, **kwargs)

    def with_masks(self, sample: dict, task: str) -> dict:
        """A training batch with `masks` for a task of `TASKS`, and what tells the model of it."""
        maps = sample["target"] if task == SEMANTIC else sample["segment_maps"]
        masks = mask_targets(maps, [lists[task] for lists in sample["mask_lists"]], self.size_multiple)
        inputs = sample["net_input"] | {"task": task}
        if len(self.trained_classes) < len(self.vocabulary):
            rows = [*self.trained_classes, len(self.vocabulary)]
            inputs["rows"] = torch.tensor(rows, device=inputs[self.image_key].device)
        return sample | {"net_input": inputs, "masks": masks}

    def valid_step(self, sample, model, criterion, ema_model=None):
        model = unwrap(ema_model if ema_model is not None else model)
        model.eval()
        device = next(model.parameters()).device
        if not sample["nsentences"]:
            loss, _, log = self._empty_step(sample, device)
            return loss, 0, in_order(log | {"sample_size": 0} | dict.fromkeys(criterion.parts, loss))
        regions = not (self.cfg.without_regions or self.cfg.valid_without_regions)
        output = self.proposals(model, sample["net_input"], regions=regions)[SEMANTIC]
        lists = [lists[SEMANTIC].to(device) for lists in sample["mask_lists"]]
        targets = mask_targets([part.to(device) for part in sample["input_label_maps"]], lists, self.size_multiple)
        loss, sample_size, log = criterion.loss(output, targets)
        log["_bad_rows"] = len(sample.get("bad_rows", ()))
        results = self.class_maps(output, sample["net_input"][self.image_key].shape[2:], sample["native_sizes"])
        return loss, sample_size, in_order(log | self.counts("_confusion", results, sample["native_label_maps"]))

    def validation_posts(self) -> dict[str, PostProcess]:
        return {"_confusion": self.post_process()}

    # ---- prediction ----

    @torch.no_grad()
    def proposals(
        self, model, net_input: dict, tasks: Sequence[str] = (SEMANTIC,), regions: Optional[bool] = None
    ) -> dict[str, MaskOutput]:
        """For each task the masks and scores of a batch, whose photos are encoded once; with CLIP's opinion of regions where asked for
        (default: as configured)."""
        image = net_input[self.image_key].to(next(model.parameters()).device, non_blocking=True)
        regions = not self.cfg.without_regions if regions is None else regions
        with self.autocast(image.device):
            return self.mask_prediction(model)(image, tasks, regions=regions)

    def mask_prediction(self, model):
        """`model.predict`, or with `tuning_steps` the same with prompts tuned to each photo."""
        if self.tuner is None:
            return model.predict
        every = str(self.cfg.tuning_classes) == "all"
        novel = [k for k in range(len(self.vocabulary)) if every or k not in self.trained_classes]
        return partial(self.tuner.predict, model, novel)


def parse_sides(text: str) -> tuple[int, ...]:
    """Pixels from a comma list. Raises ValueError for anything but numbers above 0."""
    sides = [part.strip() for part in text.split(",") if part.strip()]
    if not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"short sides {text!r}: give pixels, separated by commas, such as 320,384,448")
    return tuple(int(side) for side in sides)
