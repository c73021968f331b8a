"""What every task on labelled shards shares: the class vocabulary, where weights start from, readers."""

import os
from dataclasses import dataclass, field, replace

import torch
from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II, MISSING

from ofaseg.data.folder import missing_folder
from ofaseg.data.row_dataset import ON_BAD_SAMPLE
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.vocabulary import ClassVocabulary, VocabularyError, name_difference, resolve_vocabulary
from user_tasks.base_tasks import VocabularyTask

TRAINING_SPLITS = ("train", "train_aug", "trainval")
"""What `--train-subset` may name: photos of these splits are augmented and shuffled."""


@dataclass
class LabelledTaskConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "folder of shards: <split>-*.parquet or .tsv, and vocabulary.json"})
    class_names: str = field(default="", metadata={"help": "class names: a file with one per line, or a comma-separated list"})
    rename_classes: bool = field(default=False, metadata={"help": "--class-names re-words the shards' classes one by one"})
    selected_cols: str = field(default="", metadata={"help": "positions of image, label map and id in a TSV row, such as 0,1,2"})
    label_offset: int = field(default=1, metadata={"help": "for TSV files without vocabulary.json: stored label of class 0 (IFSeg: 1)"})
    pretrained: str = field(default="", metadata={"help": "checkpoint to start from (official, ours, exported); resuming ignores it"})
    autocast: ChoiceEnum(["none", "bf16"]) = field(default="none", metadata={"help": "mixed precision of forward and loss"})
    on_bad_sample: ChoiceEnum(ON_BAD_SAMPLE) = field(
        default="skip", metadata={"help": "a row that cannot be read: skip (leave it out, counted as bad_rows) or raise"}
    )
    # a live loader would keep the epoch its workers were started with
    reuse_dataloader: bool = field(default=False, metadata={"help": "keep one data loader over epochs; needs --persistent-workers"})
    # fairseq's default True keeps the workers of every finished epoch and validation alive: memory fills up, epoch by epoch
    persistent_workers: bool = field(default=False, metadata={"help": "keep data workers alive after their epoch"})
    seed: int = II("common.seed")


class LabelledTask(VocabularyTask):
    """Base of the tasks whose data are shards with label maps.

    A sub-class implements `load_dataset`.
    """

    @classmethod
    def resolve_vocabulary(cls, cfg: LabelledTaskConfig) -> ClassVocabulary:
        """Names from --class-names or the shards; raises VocabularyError when neither or both disagree, ShardError for no folder."""
        shard_vocabulary = load_vocabulary(cfg.data)
        if shard_vocabulary is None and not cfg.class_names and cfg.data and not os.path.exists(cfg.data):
            raise missing_folder(cfg.data)
        vocabulary = resolve_vocabulary(cfg.class_names, shard_vocabulary, cfg.rename_classes)
        if shard_vocabulary is None:
            ignore_label = 0 if cfg.label_offset else None
            vocabulary = replace(vocabulary, label_offset=cfg.label_offset, ignore_label=ignore_label)
        return vocabulary

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Builds the model, from `--pretrained` weights where given; logs what matched."""
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.pretrained and not from_checkpoint:
            from ofaseg.checkpoints import load_pretrained  # checkpoints know tasks, so tasks import them late

            load_pretrained(model, self.cfg.pretrained, self.vocabulary.names)
        return model

    def state_dict(self) -> dict:
        """What a checkpoint says of the task: the class vocabulary and the count of rows left out."""
        return super().state_dict() | {"vocabulary": self.vocabulary.to_json()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Raises VocabularyError when a run is resumed with other classes than it was trained with."""
        super().load_state_dict(state_dict)
        if "vocabulary" in state_dict:
            trained = ClassVocabulary.from_json(state_dict["vocabulary"], "the checkpoint")
            difference = name_difference(trained.names, self.vocabulary.names)
            if difference:
                raise VocabularyError(
                    f"the checkpoint was trained with other classes ({difference}); to start from its weights, use --pretrained and "
                    "another --save-dir"
                )

    # ---- data ----

    def reader(self, split: str) -> ShardReader:
        """The shards of a split."""
        return ShardReader.for_split(self.cfg.data, split, selected_cols=self.cfg.selected_cols or None)

    def first_training_batch(self, device: torch.device) -> dict:
        """What a process without a batch of its own repeats without gradient, on its device."""
        data = next(data for split, data in self.datasets.items() if split in TRAINING_SPLITS)
        return utils.apply_to_sample(lambda tensor: tensor.to(device), data.collater([data[0]]))
