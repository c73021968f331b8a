"""Task of models that make semantic, instance and panoptic masks with one set of weights (FreeSeg)."""

from dataclasses import dataclass, field
from functools import partial
from typing import Sequence

import numpy as np
import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task

from ofaseg.clip_bpe import ClipTokenizer, find_merges
from ofaseg.data import transforms
from ofaseg.data.mask_target_dataset import SEMANTIC, MaskTargetDataset, mask_targets
from ofaseg.evaluation.postprocess import PostProcess
from ofaseg.structures import MaskOutput, unwrap
from ofaseg.vocabulary import ClassVocabulary
from user_tasks.dense_segmentation import PromptedClasses
from user_tasks.mask_outputs import TASKS, MaskOutputOptions, MaskOutputs, parse_tasks, with_things
from user_tasks.segmentation_task import LONG_SIDE, SegmentationTask, SegmentationTaskConfig

SCALES = tuple(k / 10 for k in range(5, 16))
"""Short sides of training photos are so many times the crop's (published, on COCO: 320, 384 ... 960 for 640)."""


@dataclass
class UnifiedSegmentationConfig(MaskOutputOptions, SegmentationTaskConfig):
    patch_image_size: int = field(default=640, metadata={"help": "side of training crops, short side of test photos (COCO: 640)"})
    label_offset: int = field(default=0, metadata={"help": "for TSV files without vocabulary.json: stored label of class 0"})
    text_tokenizer: ChoiceEnum(["clip_bpe"]) = field(default="clip_bpe", metadata={"help": "how texts are cut: clip_bpe (CLIP)"})
    clip_bpe: str = field(
        default="", metadata={"help": "bpe_simple_vocab_16e6.txt.gz of CLIP, or its folder (default: the one inside open_clip_torch)"}
    )
    text_length: int = field(default=77, metadata={"help": "longest class name in tokens, with both ends"})
    templates: str = field(default="name", metadata={"help": "sentences around class names; prompts are learned, so: name"})
    tasks: str = field(
        default=",".join(TASKS), metadata={"help": "what is trained, one drawn per update: semantic,instance,panoptic or some of them"}
    )
    clip_checkpoint: str = field(default="", metadata={"help": "CLIP file that texts and regions are read with, OpenAI's or open_clip's"})
    random_towers: bool = field(default=False, metadata={"help": "without --clip-checkpoint: CLIP of random weights, for tests"})
    image_checkpoint: str = field(default="", metadata={"help": "weights of the image encoder to start from (ImageNet's)"})
    prompt_checkpoint: str = field(default="", metadata={"help": "checkpoint of prompt learning, whose prompts are taken"})


@register_task("unified_segmentation", dataclass=UnifiedSegmentationConfig)
class UnifiedSegmentationTask(MaskOutputs, PromptedClasses, SegmentationTask):
    """Trains on masks of a kind drawn for each update, the same on all processes (FreeSeg, section 3.1); scores and predicts class maps.

    Classes that the vocabulary marks as novel are kept from training: neither their masks nor their texts play a part.

    Attributes:
        tasks: what is trained, of `TASKS`.
        trained_classes: ids of the classes that training knows.
    """

    def __init__(self, cfg: UnifiedSegmentationConfig, vocabulary: ClassVocabulary):
        super().__init__(cfg, with_things(vocabulary, cfg.things))
        self.tasks = parse_tasks(cfg.tasks)
        self.set_up_outputs(cfg)
        self.set_up_prompts(cfg, vocabulary.names)

    @classmethod
    def setup_task(cls, cfg: UnifiedSegmentationConfig, **kwargs):
        return cls(cfg, cls.resolve_vocabulary(cfg))

    def build_text_tokenizer(self, cfg):
        """CLIP's. Raises TokenizerError without its merges."""
        return ClipTokenizer(find_merges(cfg.clip_bpe))

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Builds the model and reads the files of its parts, unless a checkpoint, or `--pretrained`, brings them.

        Raises:
            CheckpointError: no CLIP is named, or a file does not fit.
        """
        from ofaseg.checkpoints import CheckpointError, freeseg  # checkpoints know tasks, so tasks import them late

        model = super().build_model(cfg, from_checkpoint)
        self.size_multiple = model.config.size_divisibility
        if from_checkpoint:
            return model
        self.trained_vocabulary = self.vocabulary
        if not (self.cfg.clip_checkpoint or self.cfg.pretrained or self.cfg.random_towers):
            raise CheckpointError("the frozen CLIP needs its weights: give --clip-checkpoint (a local file), or --pretrained")
        if self.cfg.clip_checkpoint:
            freeseg.load_clip(model, self.cfg.clip_checkpoint)
        if self.cfg.image_checkpoint:
            freeseg.load_image_encoder(model, self.cfg.image_checkpoint)
        if self.cfg.prompt_checkpoint:
            freeseg.load_prompts(model, self.cfg.prompt_checkpoint)
        return model

    # ---- classes ----

    @property
    def trained_classes(self) -> list[int]:
        novel = self.vocabulary.novel or (False,) * len(self.vocabulary)
        return [k for k, held_out in enumerate(novel) if not held_out]

    def set_class_names(self, vocabulary: ClassVocabulary) -> None:
        """Replaces the class vocabulary; the model needs `give_classes(model)` afterwards."""
        self.vocabulary = vocabulary
        self.class_prompts = self.prompts_of(vocabulary.names)

    def give_classes(self, model) -> None:
        """Tells a model the task's classes."""
        model.set_classes(self.class_prompts)

    # ---- data ----

    def dataset_class(self):
        rows = np.full(len(self.vocabulary), -1)
        rows[self.trained_classes] = np.arange(len(self.trained_classes))
        return partial(MaskTargetDataset, tasks=self.tasks, class_rows=rows)

    def training_transform(self, sample: dict, rng: np.random.Generator) -> dict:
        """Short side drawn from `SCALES`, crop, flip, colour jitter; crops are taken wherever they fall, as published."""
        size = self.cfg.patch_image_size
        short = int(size * rng.choice(SCALES) + 0.5)
        sample = transforms.random_crop(transforms.resize_short_side(sample, short, LONG_SIDE * size), rng, size, cat_max_ratio=1.0)
        return transforms.photometric_distortion(transforms.random_flip(sample, rng), rng)

    # ---- steps ----

    def drawn_task(self, update_num: int) -> str:
        """The task of an update: the same on all processes, in every batch of the update, and after resuming."""
        return str(np.random.default_rng((self.cfg.seed, update_num)).choice(self.tasks))

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        if ignore_grad and "target" not in sample:
            sample = self._first_training_batch(sample["id"].device)  # see SegmentationTask.train_step
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
            return loss, 0, log | {"sample_size": 0} | dict.fromkeys(criterion.parts, loss)
        output = self.proposals(model, sample["net_input"])[SEMANTIC]
        lists = [lists[SEMANTIC].to(device) for lists in sample["mask_lists"]]
        targets = mask_targets([part.to(device) for part in sample["input_label_maps"]], lists, self.size_multiple)
        loss, sample_size, log = criterion.loss(output, targets)
        log["_bad_rows"] = len(sample.get("bad_rows", ()))
        results = self.class_maps(output, sample["net_input"][self.image_key].shape[2:], sample["native_sizes"])
        return loss, sample_size, log | self.counts("_confusion", results, sample["native_label_maps"])

    def validation_posts(self) -> dict[str, PostProcess]:
        return {"_confusion": self.post_process()}

    # ---- prediction ----

    @torch.no_grad()
    def proposals(self, model, net_input: dict, tasks: Sequence[str] = (SEMANTIC,)) -> dict[str, MaskOutput]:
        """For each task the masks and scores of a batch, whose photos are encoded once."""
        image = net_input[self.image_key].to(next(model.parameters()).device, non_blocking=True)
        with self.autocast(image.device):
            return model.predict(image, tasks, regions=not self.cfg.without_regions)
