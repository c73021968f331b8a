"""Task of small-scale vision-language pretraining: captions, region descriptions, infilling and copying as token sequences."""

import logging
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import register_task
from omegaconf import II, MISSING
from torch import Tensor, nn

from ofaseg.data.pretraining_dataset import IMAGE_COLUMNS, PretrainingDataset, PretrainingSymbols
from ofaseg.data.pretraining_mixture import TASKS, PretrainingMixture
from ofaseg.data.segmentation_dataset import ON_BAD_SAMPLE
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.data.synthetic import ArtificialImageSampler
from ofaseg.prompts import SEGMENTATION_PROMPT
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary, resolve_vocabulary
from user_tasks.base_tasks import TokenTask

logger = logging.getLogger(__name__)

PROBE_MOSAICS = 64
"""Word mosaics behind the class means of the transfer number."""


@dataclass
class VisionLanguagePretrainingTaskConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "folder of shards with the columns image, captions, boxes"})
    class_names: str = field(default="", metadata={"help": "names the model's class table starts with; default: the shards' vocabulary"})
    bpe_dir: str = field(default="", metadata={"help": "folder of the tokenizer: dict.txt, or GPT-2 or SentencePiece files"})
    bpe: Optional[ChoiceEnum(["gpt2", "sentencepiece", "word"])] = field(
        default=None, metadata={"help": "tokenizer, when --bpe-dir leaves a choice"}
    )
    num_bins: int = field(default=12, metadata={"help": "number of <bin_i> location symbols"})
    code_dict_size: int = field(default=0, metadata={"help": "number of <code_i> symbols"})
    patch_image_size: int = field(default=96, metadata={"help": "side of the images, pixels"})
    max_source_positions: int = field(default=512, metadata={"help": "text positions of the model"})
    caption_task: float = field(default=0.4, metadata={"help": "weight of captioning in the mixture"})
    box_task: float = field(default=0.3, metadata={"help": "weight of region description: location symbols -> words"})
    ground_task: float = field(default=0.0, metadata={"help": "weight of grounding: words -> location symbols"})
    infill_task: float = field(default=0.2, metadata={"help": "weight of infilling masked captions"})
    copy_task: float = field(default=0.1, metadata={"help": "weight of repeating random words"})
    crop_task: float = field(default=0.0, metadata={"help": "weight of naming a region that is cut out along its box"})
    crop_side: int = field(default=48, metadata={"help": "side of a cut-out in pixels"})
    substitution: float = field(
        default=0.0, metadata={"help": "share of images in which words of box texts stand in for a part of the patches inside the boxes"}
    )
    mask_ratio: float = field(default=0.3, metadata={"help": "share of words masked by infilling"})
    hidden_ratio: float = field(default=0.5, metadata={"help": "share of infilling samples without the image"})
    max_regions: int = field(default=4, metadata={"help": "most boxes that one region sample asks for"})
    no_flip: bool = field(default=False, metadata={"help": "do not mirror images at random"})
    alignment_captions: bool = field(default=False, metadata={"help": "hand captions to the criterion (needed by its alignment losses)"})
    transfer_probe: bool = field(
        default=False,
        metadata={"help": "in validation only: patch accuracy of class means of word mosaics on photos (reads label maps)"},
    )
    init_std: float = field(
        default=0.0,
        metadata={"help": "spread of fresh linear and word-embedding weights; 0 keeps OFA's 0.02, 1/sqrt(width) suits narrow models"},
    )
    autocast: ChoiceEnum(["none", "bf16"]) = field(default="none", metadata={"help": "mixed precision of forward and loss"})
    on_bad_sample: ChoiceEnum(ON_BAD_SAMPLE) = field(
        default="skip", metadata={"help": "a row that cannot be read: skip (leave it out, counted as bad_rows) or raise"}
    )
    reuse_dataloader: bool = field(default=False, metadata={"help": "keep one data loader over epochs; needs --persistent-workers"})
    # fairseq's default True keeps the workers of every finished epoch and validation alive: memory fills up, epoch by epoch
    persistent_workers: bool = field(default=False, metadata={"help": "keep data workers alive after their epoch"})
    seed: int = II("common.seed")


@register_task("vision_language_pretraining", dataclass=VisionLanguagePretrainingTaskConfig)
class VisionLanguagePretrainingTask(TokenTask):
    """Trains an OFA-style model on image, caption and box rows; label maps are never read in training.

    Attributes:
        task_names: the token-sequence tasks, in the order of the batches' `tasks`.
        content_word_ids: dictionary ids of every text symbol, what copying draws from.
    """

    task_names = TASKS

    def __init__(self, cfg: VisionLanguagePretrainingTaskConfig, vocabulary: ClassVocabulary):
        super().__init__(cfg, vocabulary)
        self.content_word_ids = np.arange(self.dictionary.nspecial, self.dictionary.index("<mask>"))
        self._mosaic_means: Optional[Tensor] = None

    @classmethod
    def setup_task(cls, cfg: VisionLanguagePretrainingTaskConfig, **kwargs):
        return cls(cfg, resolve_vocabulary(cfg.class_names, load_vocabulary(cfg.data)))

    def build_model(self, cfg, from_checkpoint: bool = False):
        model = super().build_model(cfg, from_checkpoint)
        freeze_segmentation_parameters(model)
        if self.cfg.init_std > 0 and not from_checkpoint:
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=self.cfg.init_std)
            words = model.encoder.embed_tokens
            nn.init.normal_(words.weight, std=self.cfg.init_std)
            nn.init.zeros_(words.weight.data[words.padding_idx])
            model.init_class_embeddings()
        return model

    # ---- data ----

    def mixture(self) -> PretrainingMixture:
        cfg = self.cfg
        return PretrainingMixture(
            caption=cfg.caption_task,
            box=cfg.box_task,
            ground=cfg.ground_task,
            infill=cfg.infill_task,
            copy=cfg.copy_task,
            crop=cfg.crop_task,
            crop_side=cfg.crop_side,
            substitution=cfg.substitution,
            mask_ratio=cfg.mask_ratio,
            hidden_ratio=cfg.hidden_ratio,
            max_regions=cfg.max_regions,
            flip=0.0 if cfg.no_flip else 0.5,
        )

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        probe = self.cfg.transfer_probe and split != "train"
        columns = [*IMAGE_COLUMNS, *(["label_map"] if probe else [])]
        dictionary = self.dictionary
        symbols = PretrainingSymbols(
            dictionary.bos(),
            dictionary.pad(),
            dictionary.eos(),
            dictionary.index("<mask>"),
            dictionary.index("<bin_0>"),
            self.cfg.num_bins,
            self.content_word_ids,
        )
        self.datasets[split] = PretrainingDataset(
            ShardReader.for_split(self.cfg.data, split, columns=columns),
            self.vocabulary,
            self.encode,
            symbols,
            self.mixture(),
            self.cfg.seed,
            self.cfg.patch_image_size,
            patch_stride=self.grid_stride,
            caption_ids=self.cfg.alignment_captions,
            label_maps=probe,
            training=split == "train",
            on_bad_sample=str(self.cfg.on_bad_sample),
        )

    # ---- steps ----

    def valid_step(self, sample, model, criterion):
        model.eval()
        with torch.no_grad(), self.autocast(sample["id"].device):
            loss, sample_size, logging_output = criterion(model, sample)
            logging_output["_bad_rows"] = len(sample["bad_rows"])
            if self.cfg.transfer_probe:
                logging_output["_transfer"] = self.transfer_counts(model, sample)
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        counts = [log["_token_counts"] for log in logging_outputs if "_token_counts" in log]
        if counts:
            for name, (correct, total) in zip(TASKS, sum(counts).tolist(), strict=True):
                if total:
                    metrics.log_scalar(f"acc_{name}", correct / total, total, round=4)
        counts = [log["_transfer"] for log in logging_outputs if "_transfer" in log]
        if counts:
            correct, total = sum(counts).tolist()
            metrics.log_scalar("transfer", correct / max(total, 1), total, round=4)

    # ---- the transfer number ----

    def begin_valid_epoch(self, epoch, model) -> None:
        super().begin_valid_epoch(epoch, model)
        model.init_class_embeddings()  # the words have moved since the class rows were made from them; checkpoints follow validation
        if self.cfg.transfer_probe:
            model.eval()
            with torch.no_grad():
                self._mosaic_means = self.mosaic_means(model)

    def _probe_source(self, inputs: Tensor) -> Tensor:
        """(B, S) source text of segmentation for the B images or mosaics of `inputs`."""
        return self.segmentation_source(SEGMENTATION_PROMPT).to(inputs.device).expand(len(inputs), -1)

    def mosaic_means(self, model) -> Tensor:
        """(C, D) unit mean encoder output of each class word over random word mosaics."""
        side = self.cfg.patch_image_size // model.grid_stride
        num_classes = len(self.vocabulary)
        sampler = ArtificialImageSampler(num_classes, (side, side), (side, side), 1, side, self.cfg.seed)
        maps = torch.from_numpy(np.stack([sampler(0, k)[0] for k in range(PROBE_MOSAICS)])).to(model.class_embeddings().device)
        encoded = model.encode(self._probe_source(maps), class_maps=maps)
        tokens = encoded.tokens[:, : side * side].flatten(0, 1).float()
        sums = tokens.new_zeros(num_classes, tokens.shape[1]).index_add_(0, maps.flatten(), tokens)
        return F.normalize(sums, dim=-1)

    def transfer_counts(self, model, sample: dict) -> Tensor:
        """(2,) float64: patches of photos that the nearest mosaic mean names rightly, and all labelled patches."""
        if "label_maps" not in sample:  # no whole image in this batch; every process logs the same keys
            return torch.zeros(2, dtype=torch.float64, device=sample["id"].device)
        images = sample["net_input"]["patch_images"]
        encoded = model.encode(self._probe_source(images), patch_images=images)
        cells = encoded.grid[0] * encoded.grid[1]
        guess = (encoded.tokens[:, :cells].float() @ self._mosaic_means.T).argmax(-1)
        half, stride = model.grid_stride // 2, model.grid_stride
        label = sample["label_maps"][:, half::stride, half::stride].flatten(1).to(guess.device)
        labelled = label != IGNORE_INDEX
        return torch.stack([(guess.eq(label) & labelled).sum(), labelled.sum()]).double()


def freeze_segmentation_parameters(model: nn.Module) -> None:
    """Takes the gradient from what only segmentation reads: positions, biases and rows of the classes, all named `seg_`.

    No step of token sequences reaches them, and several processes would wait for their gradients. They stay in the
    checkpoint; a model that is built for adaptation trains them.
    """
    for name, parameter in model.named_parameters():
        if "seg_" in name:
            parameter.requires_grad_(False)
