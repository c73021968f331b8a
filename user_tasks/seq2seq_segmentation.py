"""Task of IFSeg on OFA: dictionary, tokenizer, source text, image-free or supervised training."""

import logging
from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task

from ofaseg.data.seq2seq_dataset import ArtificialImageDataset, Seq2SeqSegmentationDataset
from ofaseg.data.synthetic import ArtificialImageSampler
from ofaseg.prompts import SEGMENTATION_PROMPT
from ofaseg.vocabulary import ClassVocabulary
from user_tasks import subclass_options
from user_tasks.base_tasks import TokenTask
from user_tasks.segmentation_task import SegmentationTask, SegmentationTaskConfig

logger = logging.getLogger(__name__)


@dataclass
class Seq2SeqSegmentationConfig(subclass_options.SubclassNameOptions, SegmentationTaskConfig):
    bpe_dir: str = field(default="", metadata={"help": "tokenizer folder: encoder.json, vocab.bpe, dict.txt, or a SentencePiece *.model"})
    bpe: Optional[ChoiceEnum(["gpt2", "sentencepiece", "word"])] = field(
        default=None, metadata={"help": "tokenizer, when --bpe-dir leaves a choice"}
    )
    prompt_prefix: str = field(default=SEGMENTATION_PROMPT, metadata={"help": "source text before the class names; may be empty"})
    supervised: bool = field(default=False, metadata={"help": "train on photos with label maps; default: image-free"})
    artificial_min_side: int = field(default=1, metadata={"help": "least side of the random class layout (rand_k-L-R: L)"})
    artificial_max_side: int = field(default=32, metadata={"help": "largest side of the class layout (the paper's S; rand_k-L-R: R-1)"})
    epoch_size: int = field(default=1600, metadata={"help": "artificial images per epoch (official: 16 x 100)"})
    low_resolution_loss: bool = field(default=False, metadata={"help": "image-free loss on the patch grid instead of at full resolution"})
    display_pass: bool = field(default=False, metadata={"help": "also run training photos through the model each step, for curves"})
    code_dict_size: int = field(default=8192, metadata={"help": "number of <code_i> symbols of the model's dictionary"})
    num_bins: int = field(default=1000, metadata={"help": "number of <bin_i> symbols of the model's dictionary"})
    max_source_positions: int = field(default=1024, metadata={"help": "text positions of the model"})


@register_task("seq2seq_segmentation", dataclass=Seq2SeqSegmentationConfig)
class Seq2SeqSegmentationTask(TokenTask, SegmentationTask):
    """Open-vocabulary segmentation as one class word per image patch (IFSeg, CVPR 2023).

    Attributes:
        source_tokens: (S,) long, the source text of every sample.
        class_words: with `subclasses`, for each class the token ids of the names that its word vector is the mean of; else None.
    """

    image_key = "patch_images"
    reads_class_order = True

    def __init__(self, cfg: Seq2SeqSegmentationConfig, vocabulary: ClassVocabulary):
        super().__init__(cfg, vocabulary)
        self.source_tokens = self.segmentation_source(cfg.prompt_prefix)
        self.class_words = self._class_words()

    @classmethod
    def setup_task(cls, cfg: Seq2SeqSegmentationConfig, **kwargs):
        return cls(cfg, cls.resolve_vocabulary(cfg))

    def set_class_names(self, vocabulary: ClassVocabulary) -> None:
        """Replaces the class vocabulary of a loaded model, for notebooks and services; `load_model` does it for one list.

        The model needs `give_classes(model)` afterwards.

        Raises:
            LabelSetError: the task's subclasses are of other classes.
        """
        self.vocabulary = vocabulary
        self.class_token_ids = [self.encode(name) for name in vocabulary.names]
        self.source_tokens = self.segmentation_source(self.cfg.prompt_prefix)
        self.class_words = self._class_words()

    def give_classes(self, model) -> None:
        """Tells a model the task's classes, and the words they are made of."""
        model.set_classes(self.class_token_ids)
        if self.class_words is not None:
            model.set_class_words(self.class_words)

    def build_model(self, cfg, from_checkpoint: bool = False):
        model = super().build_model(cfg, from_checkpoint)
        if self.class_words is not None:
            model.set_class_words(self.class_words)
        return model

    def _class_words(self) -> Optional[list[list[list[int]]]]:
        label_set = subclass_options.load_subclasses(self.cfg, self.vocabulary.names)
        return None if label_set is None else subclass_options.class_words(self.cfg, label_set, self.encode)

    # ---- data ----

    def dataset_class(self):
        return Seq2SeqSegmentationDataset

    def dataset_arguments(self) -> dict:
        return {"source_tokens": self.source_tokens}

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        if split == "train" and not self.cfg.supervised:
            self.datasets[split] = self._artificial_dataset()
        else:
            super().load_dataset(split)

    def _artificial_dataset(self) -> ArtificialImageDataset:
        side = self.cfg.patch_image_size
        grid = -(-side // self.grid_stride)
        target = grid if self.cfg.low_resolution_loss else side
        sampler = ArtificialImageSampler(
            len(self.vocabulary),
            (grid, grid),
            (target, target),
            min(self.cfg.artificial_min_side, grid),
            min(self.cfg.artificial_max_side, grid),
            self.cfg.seed,
        )
        display = self.photo_dataset("train", training=True) if self.cfg.display_pass else None
        return ArtificialImageDataset(sampler, self.cfg.epoch_size, self.source_tokens, display)
