"""What the datasets over rows share: plain batches, and bad rows that never cost the others."""

import logging
from typing import Callable

import numpy as np
from fairseq.data import FairseqDataset

from ofaseg.data.codec import CodecError
from ofaseg.data.rows import ShardError

logger = logging.getLogger(__name__)

Transform = Callable[[dict, np.random.Generator], dict]

ON_BAD_SAMPLE = ("skip", "raise")
"""What to do with a row that cannot be turned into a sample: leave it out of its batch, or stop."""
MAX_BAD_IN_A_ROW = 100
"""So many bad rows one after the other are no accident: reading stops."""


class PlainBatches(FairseqDataset):
    """Base of every dataset here: consecutive chunks of the ordered indices become batches, none is dropped.

    fairseq's own batcher drops the last batch when its size is no multiple of `--required-batch-size-multiple`.
    """

    epoch = 1
    # a new iterator per epoch, so that `set_epoch` reaches the workers it starts
    can_reuse_epoch_itr_across_epochs = False

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def num_tokens(self, index: int) -> int:
        return 1

    def size(self, index: int) -> int:
        return 1

    def filter_indices_by_size(self, indices, max_sizes):
        return indices, []

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        """Lists of at most `max_sentences` indices (1 when it is None); groups of `batch_groups` are never mixed."""
        chunk = max_sentences or 1
        batches = []
        for group in self.batch_groups(np.asarray(indices), chunk):
            batches += [group[start : start + chunk].tolist() for start in range(0, len(group), chunk)]
        return batches

    def batch_groups(self, indices: np.ndarray, chunk: int) -> list[np.ndarray]:
        """Index groups whose samples may share a batch."""
        return [indices]


class TooManyBadRows(ShardError):
    """Row after row could not be read: the shards are unusable, or belong to another vocabulary."""


class BadRow:
    """A row that could not be turned into a sample, and why."""

    def __init__(self, index: int, error: Exception):
        self.index, self.message = index, str(error)


class RowDataset(PlainBatches):
    """Rows that become samples one by one; a subclass says how by `load`.

    Args:
        training: shuffle rows each epoch; otherwise keep their order.
        on_bad_sample: "skip" logs bad rows and hands out a `BadRow` (`TooManyBadRows` after `MAX_BAD_IN_A_ROW` without a good one
            between them), "raise" raises at the first.

    Raises:
        ValueError: another `on_bad_sample`.
    """

    def __init__(self, training: bool, seed: int = 1, on_bad_sample: str = "skip"):
        if on_bad_sample not in ON_BAD_SAMPLE:
            raise ValueError(f"on_bad_sample is {on_bad_sample!r}; choose from {', '.join(ON_BAD_SAMPLE)}")
        self.training, self.seed, self.on_bad_sample = training, seed, on_bad_sample
        self._bad_in_a_row = 0

    def __len__(self) -> int:
        raise NotImplementedError

    def load(self, index: int) -> dict:
        """The sample of row `index`. Raises ShardError or CodecError for a broken row; the message names file, row and column."""
        raise NotImplementedError

    def bad_rows_advice(self) -> str:
        """Ends the message of `TooManyBadRows`: what to do."""
        raise NotImplementedError

    def ordered_indices(self) -> np.ndarray:
        if self.training:
            return np.random.default_rng((self.seed, self.epoch)).permutation(len(self))
        return np.arange(len(self))

    def __getitem__(self, index: int):
        try:
            sample = self.load(index)
        except (ShardError, CodecError) as error:
            if self.on_bad_sample == "raise":
                raise
            logger.warning("row %d is left out: %s", index, error)
            self._count_bad(error)
            return BadRow(index, error)
        self._bad_in_a_row = 0
        return sample

    def _count_bad(self, error: Exception) -> None:
        """Raises TooManyBadRows when `error` is one of too many without a good row between them."""
        self._bad_in_a_row += 1
        if self._bad_in_a_row < MAX_BAD_IN_A_ROW:
            return
        raise TooManyBadRows(f"{MAX_BAD_IN_A_ROW} rows in a row cannot be read, the last: {error}. {self.bad_rows_advice()}") from error

    def _another_row(self, bad: list[BadRow]) -> dict:
        """A readable row from anywhere, the same for the same epoch and batch: neighbours of bad rows are often bad too.

        Raises:
            TooManyBadRows: `MAX_BAD_IN_A_ROW` rows, those of the batch included, cannot be read.
        """
        rng = np.random.default_rng((self.seed, self.epoch, bad[-1].index))
        while True:  # reading raises after so many bad rows
            sample = self[int(rng.integers(len(self)))]
            if not isinstance(sample, BadRow):
                return sample
