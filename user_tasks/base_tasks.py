"""What the tasks share: steps under autocast with a class vocabulary, and, for models of OFA's kind, text as token ids."""

from contextlib import nullcontext
from typing import Optional

import torch
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask

from ofaseg import tokenizers
from ofaseg.prompts import UNKNOWN_NAME, source_token_ids
from ofaseg.vocabulary import ClassVocabulary


class VocabularyTask(FairseqTask):
    """Base of every task here: a class vocabulary, training steps under autocast, and the count of rows left out.

    The configuration has `autocast`, "none" or "bf16".

    Attributes:
        bad_rows_total: rows that training has left out since its first update, on all ranks, over resumed runs too.
    """

    def __init__(self, cfg, vocabulary: ClassVocabulary):
        super().__init__(cfg)
        self.vocabulary = vocabulary
        self.bad_rows_total = 0

    def state_dict(self) -> dict:
        """What a checkpoint says of the task: the count of rows left out."""
        return {"bad_rows_total": self.bad_rows_total}

    def load_state_dict(self, state_dict: dict) -> None:
        """Goes on counting where a resumed run stopped."""
        self.bad_rows_total = int(state_dict.get("bad_rows_total", 0))

    def autocast(self, device: torch.device):
        """Context of mixed precision; enter one per step, for its cache of cast weights lives until it ends."""
        return nullcontext() if str(self.cfg.autocast) == "none" else torch.autocast(device.type, dtype=torch.bfloat16)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, ema_model=None):
        model.train()
        model.set_num_updates(update_num)
        with self.autocast(sample["id"].device):
            loss, sample_size, logging_output = criterion(model, sample)
        optimizer.backward(loss * 0 if ignore_grad else loss)
        # a rank that has run out of batches repeats one without gradient: its bad rows are counted already
        bad_rows = 0 if ignore_grad else len(sample.get("bad_rows", ()))
        logging_output["_bad_rows"] = logging_output["_bad_training_rows"] = bad_rows
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        bad_rows = sum(int(log.get("_bad_rows", 0)) for log in logging_outputs)
        if bad_rows:
            metrics.log_scalar_sum("bad_rows", bad_rows)
        bad_training_rows = sum(int(log.get("_bad_training_rows", 0)) for log in logging_outputs)
        if bad_training_rows:
            self.bad_rows_total += bad_training_rows
            metrics.log_derived("bad_rows_total", lambda meters: self.bad_rows_total)

    @property
    def source_dictionary(self):
        return None

    @property
    def target_dictionary(self):
        return None


class TokenTask(VocabularyTask):
    """Mix-in for models that read and write token ids.

    The configuration has `bpe_dir`, `bpe`, `code_dict_size`, `num_bins` and `max_source_positions`.

    Attributes:
        class_token_ids: C lists of dictionary ids, the words of each class name.
        grid_stride: pixels per patch; the model sets it when it is built.
    """

    def __init__(self, cfg, vocabulary: ClassVocabulary):
        super().__init__(cfg, vocabulary)
        self.tokenizer = tokenizers.build_tokenizer(cfg.bpe_dir, str(cfg.bpe) if cfg.bpe else "")
        self.dictionary = tokenizers.build_dictionary(cfg.bpe_dir, self.tokenizer, cfg.code_dict_size, cfg.num_bins, len(vocabulary))
        self.class_token_ids = [self.encode(name) for name in vocabulary.names]
        self.grid_stride: Optional[int] = None

    def encode(self, text: str) -> list[int]:
        """Dictionary ids of a text. Raises TokenizerError for a word that the dictionary lacks."""
        return tokenizers.encode_text(text, self.tokenizer, self.dictionary)

    def segmentation_source(self, prompt: str) -> torch.Tensor:
        """(S,) long: source text of segmentation, the prompt and then every class name. Raises ValueError when it is too long."""
        ids = source_token_ids(
            self.encode(prompt),
            self.class_token_ids,
            self.encode(UNKNOWN_NAME),
            self.dictionary.bos(),
            self.dictionary.eos(),
            self.cfg.max_source_positions,
            self.vocabulary.names,
        )
        return torch.tensor(ids)

    def build_model(self, cfg, from_checkpoint: bool = False):
        model = super().build_model(cfg, from_checkpoint)
        self.grid_stride = model.grid_stride
        return model

    @property
    def source_dictionary(self):
        return self.dictionary

    @property
    def target_dictionary(self):
        return self.dictionary


def in_order(log: dict) -> dict:
    """A log sorted by name: processes add theirs up entry by entry, whatever the names, and one may have had nothing but bad rows."""
    return dict(sorted(log.items()))
