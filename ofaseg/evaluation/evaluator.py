"""Evaluators accumulate over batches and finish once: reset, update, compute; and the loop that feeds them.

Sums stay on the device of the predictions and are added over ranks in `compute`, before any division; so the scores of
N processes are those of one.
"""

import json
import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Callable, Iterable, Optional, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ofaseg.evaluation.semantic import best_constant_prediction, bin_counts, image_miou, matrix_from_bins, semantic_scores
from ofaseg.structures import SegmentationOutput
from ofaseg.utils.precision import cast_weights_once
from ofaseg.vocabulary import ClassVocabulary

logger = logging.getLogger(__name__)


class Evaluator(ABC):
    """Contract of every evaluator. State is sums only, so that the order of batches and their sizes do not matter."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets everything."""

    @abstractmethod
    def update(self, outputs: list[SegmentationOutput], batch: dict) -> None:
        """Adds the segmentations of one batch (layout in `ofaseg.structures`), one output per sample."""

    @abstractmethod
    def compute(self) -> dict:
        """Scores of everything added on all ranks. Every rank calls it and gets the same dict."""


class SemanticEvaluator(Evaluator):
    """mIoU and its relatives over all labelled pixels seen; `batch` needs ``native_label_maps``."""

    def __init__(self, vocabulary: ClassVocabulary):
        self.vocabulary = vocabulary
        self.reset()

    def reset(self) -> None:
        self._counts: Optional[Tensor] = None
        self._image_scores: list[Tensor] = []

    def update(self, outputs: list[SegmentationOutput], batch: dict) -> None:
        label_maps = batch.get("native_label_maps")
        if label_maps is None or len(label_maps) != len(outputs):
            raise ValueError("these rows carry no label maps, so they cannot be scored; evaluate a labelled split, or use predict")
        for output, label_map in zip(outputs, label_maps):
            prediction = output.label_map
            counts = bin_counts(prediction, label_map.to(prediction.device, non_blocking=True), len(self.vocabulary))
            self._counts = counts if self._counts is None else self._counts + counts
            self._image_scores.append(image_miou(counts, len(self.vocabulary)))

    def image_scores(self) -> list[float]:
        """mIoU 0..1 of each photo that this rank added, in that order; nan for a photo without labels (see `image_miou`)."""
        return torch.stack(self._image_scores).tolist() if self._image_scores else []

    def matrix(self) -> Tensor:
        """(K, K) confusion matrix [label, prediction] summed over ranks, on the CPU. All ranks must call it together."""
        counts = self._counts
        if counts is None:
            counts = torch.zeros(len(self.vocabulary) ** 2 + 2, dtype=torch.long)
        return matrix_from_bins(sum_over_ranks(counts).cpu(), len(self.vocabulary))

    def compute(self) -> dict:
        """`semantic_scores` with the number of ``images`` and, under ``constant``, the best constant prediction."""
        matrix = self.matrix()
        scores = semantic_scores(matrix, self.vocabulary)
        constant = best_constant_prediction(matrix, self.vocabulary)
        keys = ("mIoU", "mAcc", "aAcc", "fwIoU", "constant_class", "constant_name", "thing_mIoU", "stuff_mIoU", "IoU_per_class")
        scores["constant"] = {key: constant[key] for key in keys if key in constant}
        scores["images"] = int(sum_over_ranks(torch.tensor([len(self._image_scores)])))
        return scores


class JointEvaluator(Evaluator):
    """Several evaluators of the same outputs; where two have a score of one name (``images``), the first's is taken."""

    def __init__(self, parts: Sequence[Evaluator]):
        self.parts = tuple(parts)

    def reset(self) -> None:
        for part in self.parts:
            part.reset()

    def update(self, outputs: list[SegmentationOutput], batch: dict) -> None:
        for part in self.parts:
            part.update(outputs, batch)

    def compute(self) -> dict:
        """The scores of all parts in one dict."""
        every = [part.compute() for part in self.parts]
        return {key: value for scores in reversed(every) for key, value in scores.items()}


@dataclass
class EvaluationRun:
    """What a pass over a data set did: scores, and what was left out (over all ranks)."""

    scores: dict
    images: int = 0
    bad_rows: list[str] = field(default_factory=list)
    seconds: float = 0.0


@cast_weights_once()
def evaluate_batches(
    batches: Iterable[dict],
    predict: Callable[[dict], list[SegmentationOutput]],
    evaluator: Evaluator,
    on_batch: Optional[Callable[[dict, list[SegmentationOutput]], None]] = None,
) -> EvaluationRun:
    """Runs `predict` over this rank's batches and finishes the evaluator over all ranks.

    Rows that the data set could not read (messages under ``bad_rows`` of a batch) are logged, counted and left out; they
    never cost the others. The model's weights must stay as they are: those cast for mixed precision are kept.

    Args:
        batches: collated batches of this rank.
        predict: batch -> one SegmentationOutput per sample.
        evaluator: is reset first.
        on_batch: called with (batch, outputs) after each batch, for pictures and progress.

    Raises:
        ValueError: no rank could evaluate a single row.
    """
    evaluator.reset()
    images, bad_rows, start = 0, [], time.perf_counter()
    for batch in batches:
        for message in batch.get("bad_rows", ()):
            logger.warning("left out: %s", message)
            bad_rows.append(message)
        outputs = []
        if batch.get("nsentences"):
            outputs = predict(batch)
            evaluator.update(outputs, batch)
            images += len(outputs)
        if on_batch is not None:
            on_batch(batch, outputs)
    bad_rows = gather_texts(bad_rows)
    total = int(sum_over_ranks(torch.tensor([images])))
    if total == 0:
        raise ValueError("no row could be evaluated" + (f"; the first problem: {bad_rows[0]}" if bad_rows else ": the split is empty"))
    return EvaluationRun(evaluator.compute(), total, bad_rows, time.perf_counter() - start)


def rank_indices(num_rows: int, rank: Optional[int] = None, world_size: Optional[int] = None) -> list[int]:
    """Rows rank, rank + world, ...: over all ranks every row exactly once, none padded, none dropped."""
    if rank is None or world_size is None:
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
    return list(range(rank, num_rows, world_size))


def spread(total: int, count: int) -> list[int]:
    """`count` (at most `total`) row numbers evenly spread over 0..total-1, ascending and distinct."""
    count = min(count, total)
    return [int(i) for i in np.linspace(0, total - 1, count).round()] if count > 1 else list(range(count))


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of an integer tensor over all ranks; the tensor itself when there is one rank."""
    if not _distributed():
        return values
    total = values.to(_collective_device()).clone()
    dist.all_reduce(total)
    return total


def gather_texts(texts: list[str]) -> list[str]:
    """The lists of all ranks joined in rank order, on every rank; sent as JSON bytes."""
    if not _distributed():
        return list(texts)
    device = _collective_device()
    data = torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(data)], device=device))
    padded = torch.zeros(int(max(sizes)), dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [text for part, size in zip(parts, sizes) for text in json.loads(bytes(part[: int(size)].cpu().numpy()))]


def gather_parts(rows: Tensor) -> Tensor:
    """(N, ...) rows of all ranks joined in rank order, on every rank and on the device of `rows` (n, ...); n may differ between ranks."""
    if not _distributed():
        return rows
    local = rows.to(_collective_device())
    sizes = [torch.zeros(1, dtype=torch.long, device=local.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(local)], device=local.device))
    padded = local.new_zeros(int(max(sizes)), *local.shape[1:])
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes)]).to(rows.device)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _collective_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
