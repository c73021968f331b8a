"""Vision-language pretraining as token sequences: captions, region descriptions, text infilling and copying.

The tasks and their prompts follow OFA (section 3.3 of its paper): a row's image, captions and boxes become a source sentence and a
target sentence. The image is hidden in all copying samples and in half of the infilling samples. No sample is made from a label map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np
import torch
from fairseq.data import FairseqDataset
from torch import Tensor

TASKS = ("caption", "box", "ground", "infill", "copy")
CAPTION_PROMPT = "what does the image describe?"
BOX_PROMPT = "what does the region describe? region:"
GROUND_PROMPT = ("which region does the text", "describe?")
INFILL_PROMPT = ("what is the complete text of", "?")
IMAGE_COLUMNS = ("image", "captions", "boxes")


class PretrainingDataError(ValueError):
    """A row lacks what a pretraining task needs, or a setting is out of range."""


@dataclass(frozen=True)
class PretrainingMixture:
    """How often each task is drawn, and the numbers of the tasks.

    Attributes:
        caption, box, ground, infill, copy: non-negative weights; they need not sum to 1.
        mask_ratio: share of words that infilling replaces by `<mask>`.
        hidden_ratio: share of infilling samples that do not see the image.
        copy_min, copy_max: number of random words of a copying sample.
        flip: probability of a horizontal mirror of image and boxes (captions here never say left or right).
    """

    caption: float = 0.4
    box: float = 0.3
    ground: float = 0.0
    infill: float = 0.2
    copy: float = 0.1
    mask_ratio: float = 0.3
    hidden_ratio: float = 0.5
    copy_min: int = 4
    copy_max: int = 15
    flip: float = 0.5

    def probabilities(self) -> np.ndarray:
        """(len(TASKS),) probabilities. Raises PretrainingDataError for negative weights or none above zero."""
        weights = np.array([getattr(self, task) for task in TASKS], dtype=np.float64)
        if (weights < 0).any() or weights.sum() <= 0:
            raise PretrainingDataError(f"pretraining weights must be non-negative and not all zero, got {dict(zip(TASKS, weights.tolist(), strict=True))}")
        if not 1 <= self.copy_min <= self.copy_max:
            raise PretrainingDataError(f"copying needs 1 <= copy_min <= copy_max, got {self.copy_min} and {self.copy_max}")
        return weights / weights.sum()


class PretrainingSymbols(NamedTuple):
    """The dictionary ids that the tasks need: `bins` is the id of `<bin_0>`, `words` the ids that copying draws from."""

    bos: int
    pad: int
    eos: int
    mask: int
    bins: int
    num_bins: int
    words: np.ndarray


class Example(NamedTuple):
    """One sample before collation: token ids without bos and eos, and whether the image is seen, or mirrored."""

    source: list
    target: list
    see_image: bool
    flip: bool


def location_tokens(box, height: int, width: int, bins: int, num_bins: int) -> list[int]:
    """Four dictionary ids of a pixel box [x0, y0, x1, y1]: bin = round(coordinate / side x (num_bins - 1)), OFA's rule."""
    scaled = np.asarray(box, dtype=np.float64) / np.array([width, height, width, height]) * (num_bins - 1)
    return [bins + int(b) for b in np.clip(np.rint(scaled), 0, num_bins - 1)]


class PretrainingDataset(FairseqDataset):
    """Row i of the shards as one sample of a randomly drawn task, a pure function of (seed, epoch, i).

    Args:
        rows: indexable rows with the columns image, captions, boxes.
        decode_image: bytes -> uint8 (H, W, 3).
        encode: text -> dictionary ids.
        symbols, mixture, seed: see the classes above.
        image_side: expected H and W of every image.
        caption_ids: also hand out the token ids of one caption per sample, for the alignment losses.
        decode_label_map: for diagnostics in validation: also hand out label maps (H, W), mirrored with the image.
    """

    def __init__(
        self,
        rows,
        decode_image: Callable[[bytes], np.ndarray],
        encode: Callable[[str], list[int]],
        symbols: PretrainingSymbols,
        mixture: PretrainingMixture,
        seed: int,
        image_side: int,
        caption_ids: bool = False,
        decode_label_map: Optional[Callable[[bytes], np.ndarray]] = None,
    ):
        self.rows, self.decode_image, self.encode, self.symbols, self.mixture = rows, decode_image, encode, symbols, mixture
        self.seed, self.image_side, self.caption_ids = seed, image_side, caption_ids
        self.decode_label_map = decode_label_map
        self.probabilities = mixture.probabilities()
        self.epoch = 1

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return True

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        rng = np.random.default_rng((self.seed, self.epoch, int(index)))
        image = self.decode_image(row["image"])
        if image.shape[:2] != (self.image_side, self.image_side):
            raise PretrainingDataError(
                f"row {index} ({row.get('id', '?')}): the image is {image.shape[0]}x{image.shape[1]}, this model is pretrained on "
                f"{self.image_side}x{self.image_side}; resize the shards or set --patch-image-size"
            )
        task = TASKS[rng.choice(len(TASKS), p=self.probabilities)]
        example = self.make_example(task, row, rng)
        if example.flip:
            image = image[:, ::-1]
        s = self.symbols
        sample = {
            "id": index,
            "task": TASKS.index(task),
            "source": torch.tensor([s.bos, *example.source, s.eos]),
            "target": torch.tensor([*example.target, s.eos]),
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "see_image": example.see_image,
        }
        if self.caption_ids:
            sample["caption_ids"] = torch.tensor(self.encode(self._caption(row, rng)))
        if self.decode_label_map is not None:
            label_map = self.decode_label_map(row["label_map"])
            sample["label_map"] = torch.from_numpy(np.ascontiguousarray(label_map[:, ::-1] if example.flip else label_map)).long()
        return sample

    def make_example(self, task: str, row: dict, rng: np.random.Generator) -> Example:
        """Source and target token ids of one task on one row."""
        flip = bool(rng.random() < self.mixture.flip)
        encode, s = self.encode, self.symbols
        if task == "caption":
            return Example(encode(CAPTION_PROMPT), encode(self._caption(row, rng)), True, flip)
        if task in ("box", "ground"):
            box, text = self._box(row, rng, flip)
            place = location_tokens(box, self.image_side, self.image_side, s.bins, s.num_bins)
            if task == "box":
                return Example([*encode(BOX_PROMPT), *place], encode(text), True, flip)
            return Example([*encode(GROUND_PROMPT[0]), *encode(text), *encode(GROUND_PROMPT[1])], place, True, flip)
        if task == "infill":
            words = np.array(encode(self._caption(row, rng)))
            shown = np.where(rng.random(len(words)) < self.mixture.mask_ratio, s.mask, words)
            see = bool(rng.random() >= self.mixture.hidden_ratio)
        else:
            words = shown = rng.choice(s.words, int(rng.integers(self.mixture.copy_min, self.mixture.copy_max + 1)))
            see = False
        return Example([*encode(INFILL_PROMPT[0]), *shown.tolist(), *encode(INFILL_PROMPT[1])], words.tolist(), see, flip)

    def _caption(self, row: dict, rng: np.random.Generator) -> str:
        if not row.get("captions"):
            raise PretrainingDataError(f"row {row.get('id', '?')} has no caption; pretraining needs a captions column")
        return row["captions"][rng.integers(len(row["captions"]))]

    def _box(self, row: dict, rng: np.random.Generator, flip: bool) -> tuple[list, str]:
        if not row.get("boxes"):
            raise PretrainingDataError(f"row {row.get('id', '?')} has no boxes; set the weights of box and ground to 0, or add a boxes column")
        entry = row["boxes"][rng.integers(len(row["boxes"]))]
        x0, y0, x1, y1 = entry["box"]
        return ([self.image_side - x1, y0, self.image_side - x0, y1] if flip else [x0, y0, x1, y1]), entry["text"]

    def collater(self, samples: list) -> dict:
        """Batch of two parts: `net_input` of the samples that see their image, then `text_input` of those that do not.

        Either is None when it has no sample. The other entries follow this order: id (B,), target (B, T), tasks (B,);
        on request caption_ids (n, L) and label_maps (n, H, W) of the n that see. Inputs: src_tokens, patch_images uint8, prev_output_tokens.
        """
        if not samples:
            return {}
        seeing = [sample for sample in samples if sample["see_image"]]
        blind = [sample for sample in samples if not sample["see_image"]]
        samples = seeing + blind
        target = pad_sequences([sample["target"] for sample in samples], self.symbols.pad)
        batch = {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int((target != self.symbols.pad).sum()),
            "net_input": self._inputs(seeing, target[: len(seeing)]) if seeing else None,
            "text_input": self._inputs(blind, target[len(seeing) :]) if blind else None,
            "target": target,
            "tasks": torch.tensor([sample["task"] for sample in samples]),
        }
        if seeing:
            batch["net_input"]["patch_images"] = torch.stack([sample["image"] for sample in seeing])
        if self.caption_ids:
            batch["caption_ids"] = pad_sequences([sample["caption_ids"] for sample in seeing or samples], self.symbols.pad)
        if self.decode_label_map is not None:
            batch["label_maps"] = torch.stack([sample["label_map"] for sample in seeing or samples])
        return batch

    def _inputs(self, samples: list, target: Tensor) -> dict:
        """Source tokens, and the target moved right by one behind bos."""
        pad = self.symbols.pad
        prev = torch.full_like(target, pad)
        prev[:, 0] = self.symbols.bos
        prev[:, 1:] = target[:, :-1].masked_fill(target[:, 1:] == pad, pad)
        return {"src_tokens": pad_sequences([sample["source"] for sample in samples], pad), "prev_output_tokens": prev}

    def num_tokens(self, index: int) -> int:
        return 1

    def size(self, index: int) -> int:
        return 1

    def ordered_indices(self) -> np.ndarray:
        """Rows in an order drawn from (seed, epoch)."""
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self))

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1) -> list:
        """Plain chunks of `max_sentences` rows (default 1); fairseq's batcher would drop the last rows."""
        step = max_sentences or 1
        return [np.asarray(indices[k : k + step]) for k in range(0, len(indices), step)]


def pad_sequences(sequences: list, pad: int) -> Tensor:
    """(B, longest) long tensor, right-padded with `pad`."""
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
