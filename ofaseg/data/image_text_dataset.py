"""FairseqDataset of photos with captions, for contrastive training and for retrieval."""

from collections.abc import Sequence
from typing import Callable, Optional

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ofaseg.data import codec
from ofaseg.data.image_text_source import ImageTextSource
from ofaseg.data.row_dataset import BadRow, RowDataset, Transform
from ofaseg.data.rows import ShardError
from ofaseg.data.transforms import to_tensors

Tokenize = Callable[[list[str]], tuple[Tensor, Tensor]]
AugmentCaption = Callable[[str, np.random.Generator], str]

BATCH_ORDERS = ("shuffle", "debias")
"""How several data sets are mixed: all rows shuffled together, or each batch from one set."""
MAX_CAPTIONS = 1 << 16


class ImageTextDataset(RowDataset):
    """Photos with captions.

    A training sample is a photo with one of its captions; which one, and all random changes, are a pure function of
    (seed, epoch, index). An evaluation sample is a photo with all its captions.

    Args:
        source: the photos with captions.
        tokenize: texts -> (ids, mask), both (len(texts), L) int64.
        transform: sample {"image": (H, W, 3) uint8}, random generator -> sample of one size.
        training: shuffled, with full batches only; otherwise in order and complete.
        seed, on_bad_sample: see `RowDataset`.
        augment_caption: changes a training caption, see `ofaseg.data.caption_augmentation`.
        batch_order: of training, one of `BATCH_ORDERS`. "debias": every step draws one of the joined sets with a probability
            proportional to its size and takes its next batch; a set that runs out is shuffled again. The batches of one step of all
            ranks come from one set, for which fairseq has to keep them together: `grouped_shuffling` of its batch iterator.
        world_size: number of ranks. Every rank gets as many training batches as the others, all of one size, so that losses over
            the batches of all ranks can gather them.

    Raises:
        ValueError: an unknown `batch_order` or `on_bad_sample`.
    """

    def __init__(
        self,
        source: ImageTextSource,
        tokenize: Tokenize,
        transform: Transform,
        training: bool,
        seed: int = 1,
        on_bad_sample: str = "skip",
        augment_caption: Optional[AugmentCaption] = None,
        batch_order: str = "shuffle",
        world_size: int = 1,
    ):
        super().__init__(training, seed, on_bad_sample)
        if batch_order not in BATCH_ORDERS:
            raise ValueError(f"batch_order is {batch_order!r}; choose from {', '.join(BATCH_ORDERS)}")
        self.source, self.tokenize, self.transform, self.augment_caption = source, tokenize, transform, augment_caption
        self.batch_order, self.world_size = batch_order, world_size

    def __len__(self) -> int:
        return len(self.source)

    @property
    def grouped_shuffling(self) -> bool:
        """Whether the batch iterator has to shuffle whole steps of all ranks, see `batch_order`."""
        return self.training and self.batch_order == "debias"

    def bad_rows_advice(self) -> str:
        return "Check that the images belong to the captions, and the disk"

    # ---- batches ----

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        """Lists of `max_sentences` indices. In training what does not fill a batch of every rank is left over for another epoch.

        A training set that is smaller than one batch of all ranks gives each rank an equal part of it.

        Raises:
            ShardError: it is smaller than the number of ranks.
        """
        if not self.training:
            return super().batch_by_size(indices, max_tokens, max_sentences)
        if len(indices) < self.world_size:
            raise ShardError(f"{len(indices)} photos to train on, {self.world_size} processes; start as many processes as photos at most")
        indices, chunk = np.asarray(indices), max_sentences or 1
        chunk = max(1, min(chunk, len(indices) // self.world_size))
        if self.batch_order == "debias":
            indices = self._one_set_per_step(indices, chunk * self.world_size)
        full = len(indices) // (chunk * self.world_size) * chunk * self.world_size
        return [indices[start : start + chunk].tolist() for start in range(0, full, chunk)]

    def _one_set_per_step(self, indices: np.ndarray, step: int) -> np.ndarray:
        """Indices whose consecutive groups of `step` come from one set each; as many groups as the sets have.

        Raises:
            ShardError: a set has fewer rows than a step takes.
        """
        ends = np.cumsum(self.source.sizes)
        owner = np.searchsorted(ends, indices, side="right")
        sets = [indices[owner == k] for k in range(len(ends))]
        small = next((k for k, rows in enumerate(sets) if len(rows) < step), None)
        if small is not None:
            problem = f"set {small + 1} of {len(sets)} has {len(sets[small])} rows, a step of all ranks takes {step}"
            raise ShardError(f"{problem}; make the batches smaller, leave the set out, or shuffle all sets together")
        rng = np.random.default_rng((self.seed, self.epoch, len(sets)))
        sizes = np.array([len(rows) for rows in sets], dtype=np.float64)
        steps, used = int(sum(len(rows) // step for rows in sets)), [0] * len(sets)
        groups = []
        for k in rng.choice(len(sets), size=steps, p=sizes / sizes.sum()):
            if used[k] + step > len(sets[k]):
                sets[k], used[k] = rng.permutation(sets[k]), 0
            groups.append(sets[k][used[k] : used[k] + step])
            used[k] += step
        return np.concatenate(groups)

    # ---- samples ----

    def load(self, index: int) -> dict:
        """image (3, H, W) uint8, input_ids and attention_mask (T, L), image_id, captions; T is 1 in training.

        Raises:
            ShardError, CodecError: the row is broken; the message names file, row and column.
        """
        row = self.source[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        captions = row["captions"]
        if len(captions) > MAX_CAPTIONS:
            place = self.source.location(index, "captions")
            raise ShardError(f"{place}: {len(captions)} captions of one photo, at most {MAX_CAPTIONS} can be; check the ids of the photos")
        if self.training:
            caption = captions[int(rng.integers(len(captions)))]
            captions = (self.augment_caption(caption, rng) if self.augment_caption else caption,)
        image = codec.decode_image(row["image"], self.source.location(index, "image"))
        sample = to_tensors(self.transform({"image": image}, rng))
        ids, mask = self.tokenize(list(captions))
        return {"id": index, "image": sample["image"], "input_ids": ids, "attention_mask": mask} | {
            "image_id": row["image_id"],
            "captions": captions,
        }

    def collater(self, samples: list) -> dict:
        """A batch of B photos.

        - id (B,), nsentences B, ntokens B, image_id (list of B), bad_rows (messages of rows that failed),
        - net_input: image (B, 3, H, W) uint8; input_ids and attention_mask (B, L), of each photo's only or first caption.

        In evaluation also every caption of the photos, T in all: captions (list of B tuples of texts), caption_input (input_ids and
        attention_mask (T, L)), caption_image_id (list of T), and caption_order (T,), a number by which the captions of all ranks
        are brought into one order.

        A training batch stays as large as it was drawn: in the place of each row that failed comes another one. One without
        rows is {}, see `SegmentationDataset.collater`.
        """
        if not samples and self.training:
            return {}
        bad = [sample for sample in samples if isinstance(sample, BadRow)]
        if self.training:
            samples = [self._another_row([sample]) if isinstance(sample, BadRow) else sample for sample in samples]
        good = [sample for sample in samples if not isinstance(sample, BadRow)]
        batch = {"id": torch.tensor([s["id"] for s in good], dtype=torch.long), "nsentences": len(good), "ntokens": len(good)}
        batch |= {"bad_rows": [b.message for b in bad], "image_id": [s["image_id"] for s in good], "net_input": {}}
        if not good:
            return batch
        # stacked right into shared memory in a data worker, so that handing the batch over copies nothing
        batch["net_input"]["image"] = default_collate([s["image"] for s in good])
        for name in ("input_ids", "attention_mask"):
            batch["net_input"][name] = torch.stack([s[name][0] for s in good])
        return batch if self.training else batch | _all_captions(good)


def _all_captions(samples: Sequence[dict]) -> dict:
    numbered = [(s, k) for s in samples for k in range(len(s["captions"]))]
    return {
        "captions": [s["captions"] for s in samples],
        "caption_input": {name: torch.cat([s[name] for s in samples]) for name in ("input_ids", "attention_mask")},
        "caption_image_id": [s["image_id"] for s, _ in numbered],
        "caption_order": torch.tensor([s["id"] * MAX_CAPTIONS + k for s, k in numbered], dtype=torch.long),
    }
