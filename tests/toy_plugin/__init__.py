"""A plug-in of one file that trains in a second: what the tests of fairseq's own paths run on.

``--task toy_regression``: 14 rows of 4 random numbers, the target is their sum. The model has a BatchNorm layer,
hence an integer buffer; the criterion can log what fairseq finds hard (a numpy scalar, values that cannot be summed).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from fairseq import metrics
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.data import FairseqDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.tasks import FairseqTask, register_task

from ofaseg import compat

compat.apply()  # the importing process may have imported ofaseg under another OFASEG_NO_COMPAT

NUM_ROWS = 14


class ToyDataset(FairseqDataset):
    """Row i: 4 numbers drawn with seed i, and their sum."""

    def __getitem__(self, index):
        numbers = np.random.default_rng(int(index)).normal(size=4).astype(np.float32)
        return {"id": int(index), "numbers": torch.from_numpy(numbers)}

    def __len__(self):
        return NUM_ROWS

    def num_tokens(self, index):
        return 1

    size = num_tokens

    def ordered_indices(self):
        return np.arange(NUM_ROWS)

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        return [indices[start : start + max_sentences] for start in range(0, len(indices), max_sentences)]

    def collater(self, samples):
        if not samples:
            return {}
        numbers = torch.stack([sample["numbers"] for sample in samples])
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": len(samples),
            "net_input": {"numbers": numbers},
            "target": numbers.sum(1),
        }


@dataclass
class ToyTaskConfig(FairseqDataclass):
    data: str = field(default=".", metadata={"help": "an existing folder; nothing is read from it"})
    toy_words: str = field(default="", metadata={"help": "a run is not resumed with other words than it began with"})


@register_task("toy_regression", dataclass=ToyTaskConfig)
class ToyTask(FairseqTask):
    def load_dataset(self, split, combine=False, **kwargs):
        self.datasets[split] = ToyDataset()

    source_dictionary = target_dictionary = None

    def max_positions(self):
        return None

    def state_dict(self):
        return {"words": self.cfg.toy_words}

    def load_state_dict(self, state_dict):
        if state_dict["words"] != self.cfg.toy_words:
            raise ValueError(f"began with the words {state_dict['words']!r}")


@dataclass
class ToyModelConfig(FairseqDataclass):
    toy_width: int = field(default=4, metadata={"help": "hidden size"})


@register_model("toy_regression", dataclass=ToyModelConfig)
class ToyModel(BaseFairseqModel):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1)

    @classmethod
    def build_model(cls, cfg, task):
        return cls(cfg.toy_width)

    def max_positions(self):
        return None

    def forward(self, numbers):
        return self.last(self.norm(self.first(numbers.to(self.last.weight.dtype)))).squeeze(1)


@dataclass
class ToyCriterionConfig(FairseqDataclass):
    toy_log: str = field(default="plain", metadata={"help": "plain, numpy (a numpy scalar in the meters) or list (not summable)"})


@register_criterion("toy_mse", dataclass=ToyCriterionConfig)
class ToyCriterion(FairseqCriterion):
    toy_log = "plain"

    def __init__(self, task, toy_log):
        super().__init__(task)
        ToyCriterion.toy_log = toy_log

    def forward(self, model, sample, reduce=True):
        loss = (model(**sample["net_input"]).float() - sample["target"]).pow(2).sum()
        output = {"loss": float(loss.detach()), "nsentences": sample["nsentences"], "ntokens": sample["ntokens"]}
        return loss, sample["nsentences"], {**output, "sample_size": sample["nsentences"]}

    @staticmethod
    def reduce_metrics(logging_outputs):
        count = sum(output["sample_size"] for output in logging_outputs)
        loss = sum(output["loss"] for output in logging_outputs) / count
        metrics.log_scalar("loss", np.float64(loss) if ToyCriterion.toy_log == "numpy" else float(loss), count, round=9)

    @staticmethod
    def logging_outputs_can_be_summed():
        return ToyCriterion.toy_log != "list"
