"""Task of models that read photos and class prompts: evaluation and prediction of SimSeg and dense CLIP."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task

from ofaseg.clip_bpe import ClipTokenizer, find_merges
from ofaseg.data import image_text_transforms, transforms
from ofaseg.evaluation import postprocess
from ofaseg.evaluation.heatmaps import SimilarityMaps
from ofaseg.evaluation.zero_shot_settings import ZeroShotSettings, load_settings
from ofaseg.models.layers.subclass_fusion import SubclassPrompts
from ofaseg.prompts import load_templates
from ofaseg.vocabulary import ClassVocabulary
from ofaseg.wordpiece import WordPieceTokenizer, find_vocab
from user_tasks import subclass_options
from user_tasks.segmentation_task import LONG_SIDE, SegmentationTask, SegmentationTaskConfig

logger = logging.getLogger(__name__)

BACKGROUND_NAME = "background"
FEWEST_CANDIDATES = 3
"""Fewer classes than this never have one above mean + standard deviation of their scores."""
SEVERAL_CANDIDATES = 11
"""Of n classes at most n (n - 1) / (2 n - 1) lie there, whatever their scores; from so many on that is the five which are taken."""


@dataclass
class DenseSegmentationConfig(subclass_options.SubclassOptions, SegmentationTaskConfig):
    patch_image_size: int = field(default=288, metadata={"help": "side in pixels that photos are resized to, see --resize (SimSeg: 288)"})
    resize: ChoiceEnum(["square", "short_side"]) = field(
        default="square", metadata={"help": "to a square (SimSeg), or the short side to size, aspect kept, sides multiples of the patch"}
    )
    label_offset: int = field(default=0, metadata={"help": "for TSV files without vocabulary.json: stored label of class 0"})
    text_tokenizer: ChoiceEnum(["wordpiece", "clip_bpe"]) = field(
        default="wordpiece", metadata={"help": "how texts are cut: wordpiece (SimSeg, with --bert-vocab), clip_bpe (CLIP)"}
    )
    clip_bpe: str = field(
        default="", metadata={"help": "bpe_simple_vocab_16e6.txt.gz of CLIP, or its folder (default: the one inside open_clip_torch)"}
    )
    bert_vocab: str = field(default="", metadata={"help": "vocab.txt of the text tower, or its folder (default: beside the checkpoint)"})
    text_length: int = field(default=25, metadata={"help": "longest prompt in tokens, with both ends (SimSeg: 25, CLIP: 77)"})
    templates: str = field(default="imagenet80", metadata={"help": "sentences around class names: imagenet80, photo, name, or a text file"})
    zero_shot: str = field(
        default="auto",
        metadata={
            "help": "how classes are chosen: pascal_voc, pascal_context, coco_object, dense (best class per pixel, no background), "
            "or auto: pascal_voc when class 0 is 'background', else dense"
        },
    )
    refine: str = field(
        default="auto",
        metadata={
            "help": "how maps become masks: dense_crf, pydensecrf, pamr, threshold, none; auto: dense_crf, none with --zero-shot dense"
        },
    )
    threshold: float = field(default=0.5, metadata={"help": "where pamr and threshold cut a map stretched to 0..1"})
    resnet_prob_temperature: float = field(
        default=0.02, metadata={"help": "temperature of class probabilities, where feature propagation or a refinement reads them"}
    )


class PromptedClasses:
    """Mix-in of tasks whose model makes classes from prompts.

    The configuration has `text_length` and `templates`, and what `build_text_tokenizer` reads.

    Attributes:
        text_tokenizer: texts, longest length -> ids and mask.
        class_prompts: for each class the token ids of its prompts, one per template.
    """

    def set_up_prompts(self, cfg, names) -> None:
        """Raises TokenizerError without the tokenizer's file, ValueError for bad templates."""
        self.text_tokenizer = self.build_text_tokenizer(cfg)
        self.templates = load_templates(cfg.templates)
        self.class_prompts = self.prompts_of(names)

    def build_text_tokenizer(self, cfg):
        """The tokenizer of the text tower: the one that `text_tokenizer` names, CLIP's or WordPiece over `bert_vocab`."""
        if str(cfg.text_tokenizer) == "clip_bpe":
            return ClipTokenizer(find_merges(cfg.clip_bpe))
        return WordPieceTokenizer(find_vocab(cfg.bert_vocab))

    def tokenize(self, texts: list[str]):
        """(ids, mask), both (n, text_length) int64."""
        return self.text_tokenizer(texts, self.cfg.text_length)

    def prompts_of(self, names, templates: Sequence[str] = ()) -> list[list[list[int]]]:
        """Class -> template (the task's, unless given) -> token ids with both ends (CLS and SEP, or start and end).

        Texts have at most `text_length` tokens.
        """
        templates = templates or self.templates
        texts = [template.replace("{}", name) for name in names for template in templates]
        if not texts:
            return []
        ids, mask = self.text_tokenizer(texts, self.cfg.text_length)
        rows = [row[: int(length)] for row, length in zip(ids.tolist(), mask.sum(1).tolist())]
        step = len(templates)
        return [rows[start : start + step] for start in range(0, len(rows), step)]


@register_task("dense_segmentation", dataclass=DenseSegmentationConfig)
class DenseSegmentationTask(PromptedClasses, SegmentationTask):
    """Zero-shot segmentation by maps of patches and class names (SimSeg, section 3.3; dense CLIP).

    Attributes:
        grid_stride: pixels per patch; the model sets it when it is built.
        subclass_prompts: finer names of the classes as the model takes them, None without.
    """

    grid_stride = 1

    def __init__(self, cfg: DenseSegmentationConfig, vocabulary: ClassVocabulary):
        super().__init__(cfg, vocabulary)
        self.set_up_prompts(cfg, vocabulary.names)
        self.zero_shot = self._settings()
        self.subclass_prompts = self._subclass_prompts()

    @classmethod
    def setup_task(cls, cfg: DenseSegmentationConfig, **kwargs):
        return cls(cfg, cls.resolve_vocabulary(cfg))

    def build_model(self, cfg, from_checkpoint: bool = False):
        model = super().build_model(cfg, from_checkpoint)
        self.grid_stride = model.grid_stride
        model.set_subclasses(self.subclass_prompts)
        return model

    def _subclass_prompts(self) -> Optional[SubclassPrompts]:
        """Prompts of the finer names that `subclasses` gives for the vocabulary. Raises LabelSetError for a file of other classes."""
        label_set = subclass_options.load_subclasses(self.cfg, self.vocabulary.names)
        return None if label_set is None else subclass_options.subclass_prompts(self.cfg, label_set, self.prompts_of)

    def _settings(self) -> Optional[ZeroShotSettings]:
        """How the present classes are chosen; None for the best class per pixel."""
        choice = str(self.cfg.zero_shot)
        if choice == "auto":
            choice = "pascal_voc" if self.vocabulary.names[0].lower() == BACKGROUND_NAME else "dense"
        if choice == "dense":
            return None
        if len(self.vocabulary) < FEWEST_CANDIDATES:
            logger.warning(
                "%d classes are too few to choose from: of two scores none lies a standard deviation above their mean, so all is "
                "background; name more classes, or use zero_shot=dense",
                len(self.vocabulary),
            )
        elif len(self.vocabulary) < SEVERAL_CANDIDATES:
            n = len(self.vocabulary)
            logger.warning(
                "of %d classes the published rule finds %d in a photo at most, whatever it shows: it takes scores a standard deviation "
                "above their mean; name more classes, or use zero_shot=dense",
                n,
                n * (n - 1) // (2 * n - 1),
            )
        return subclass_options.with_top_m(load_settings(choice), self.cfg.top_m)

    def set_class_names(self, vocabulary: ClassVocabulary) -> None:
        """Replaces the class vocabulary; the model needs `give_classes(model)` afterwards.

        Raises:
            LabelSetError: the task's subclasses are of other classes.
        """
        self.vocabulary = vocabulary
        self.class_prompts = self.prompts_of(vocabulary.names)
        self.zero_shot = self._settings()
        self.subclass_prompts = self._subclass_prompts()

    def give_classes(self, model) -> None:
        """Tells a model the task's classes, and their finer names."""
        model.set_classes(self.class_prompts)
        model.set_subclasses(self.subclass_prompts)

    def evaluation_transform(self, sample: dict, rng=None) -> dict:
        """Only the image: a square of `patch_image_size`, aspect lost, as SimSeg's published evaluation resizes, or by its short side."""
        if str(self.cfg.resize) == "short_side":
            return transforms.resize({"image": sample["image"]}, *self.evaluation_size(*sample["image"].shape[:2]))
        return image_text_transforms.square_resize({"image": sample["image"]}, self.cfg.patch_image_size)

    def evaluation_size(self, height: int, width: int) -> tuple[int, int]:
        size = self.cfg.patch_image_size
        if str(self.cfg.resize) == "short_side":
            return transforms.short_side_size(height, width, size, LONG_SIDE * size, self.grid_stride)
        return size, size

    def post_process(self, **changes) -> postprocess.PostProcess:
        refine = self.cfg.refine
        if refine == "auto":
            refine = "none" if self.zero_shot is None else "dense_crf"
        return super().post_process(**(dict(candidates=self.zero_shot, refine=refine, threshold=self.cfg.threshold) | changes))

    def validation_posts(self) -> dict[str, postprocess.PostProcess]:
        """Scores during training come without CRF: quick, and good enough to choose a checkpoint."""
        refine = "none" if self.zero_shot is None else "threshold"
        return {"_confusion": self.post_process(resnet_iters=0, refine=refine)}

    # ---- maps of phrases ----

    def similarity_maps(
        self, model, image: np.ndarray, phrases: Sequence[str], side: int = 0, templates: Sequence[str] = ("{}",)
    ) -> SimilarityMaps:
        """How well each patch of a photo, and the photo as a whole, go with free phrases.

        The phrases become the model's classes, so that they are encoded once for many photos; `give_classes(model)` brings back
        those of the vocabulary.

        Args:
            image: (H, W, 3) uint8 RGB, of any size.
            phrases: P texts; those longer than `text_length` tokens lose their end.
            side: 0 for the size that the task evaluates at; else the short side that the model reads, aspect kept, both
                sides rounded to whole patches, the long one at most `LONG_SIDE` times `side`.
            templates: sentences around the phrases, whose vectors are averaged; "{}" reads a phrase as it is written.

        Raises:
            ValueError: no phrase, an empty one, or a side below 0.
        """
        if not phrases or not all(phrase.strip() for phrase in phrases) or side < 0:
            raise ValueError(f"phrases {list(phrases)}, side {side}: give at least one phrase, none empty, and a side of at least 0 pixels")
        prompts = self.prompts_of(phrases, templates)
        if model.prompts != prompts or model.subclasses is not None:
            model.set_classes(prompts)
        if side:
            sample = image_text_transforms.short_side_resize({"image": image}, side, model.grid_stride, LONG_SIDE * side)
        else:
            sample = self.evaluation_transform({"image": image})
        photo = transforms.to_tensors(sample)["image"][None].to(next(model.parameters()).device)
        with torch.no_grad(), self.autocast(photo.device):
            output = model.predict(image=photo)
        cosines, scores = output.class_logits[0].float().cpu().numpy(), output.image_scores[0].float().cpu().numpy()
        return SimilarityMaps(tuple(phrases), cosines, scores)
