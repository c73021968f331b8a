"""Vision-language pretraining as token sequences: captions, region descriptions, text infilling and copying.

The tasks and their prompts follow OFA (section 3.3 of its paper): a row's image, captions and boxes become a source sentence and a
target sentence. The image is hidden in all copying samples and in half of the infilling samples. No sample is made from a label map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from ofaseg.data.segmentation_dataset import PlainBatches

TASKS = ("caption", "box", "ground", "infill", "copy", "crop")
INPUTS = ("net_input", "region_input", "text_input")
CROP_FILL = 127
"""Grey value around the cut-out of a region."""
CAPTION_PROMPT = "what does the image describe?"
BOX_PROMPT = "what does the region describe?"
REGION_PROMPT = "region:"
GROUND_PROMPT = ("which region does the text", "describe?")
INFILL_PROMPT = ("what is the complete text of", "?")
IMAGE_COLUMNS = ("image", "captions", "boxes")


class PretrainingDataError(ValueError):
    """A row lacks what a pretraining task needs, or a setting is out of range."""


@dataclass(frozen=True)
class PretrainingMixture:
    """How often each task is drawn, and the numbers of the tasks.

    Attributes:
        caption, box, ground, infill, copy, crop: non-negative weights; they need not sum to 1.
        mask_ratio: share of words that infilling replaces by `<mask>`.
        hidden_ratio: share of infilling samples that do not see the image.
        copy_min, copy_max: number of random words of a copying sample.
        max_regions: a region sample asks for 1..max_regions boxes of its image at once, in random order.
        crop_side: side in pixels of the small image that shows one region cut out.
        substitution: probability that words stand in for patches of an image: inside random boxes, or inside the cut-out, a
            random share of the patches is replaced by a word of the box's text.
        flip: probability of a horizontal mirror of image and boxes (captions here never say left or right).
    """

    caption: float = 0.4
    box: float = 0.3
    ground: float = 0.0
    infill: float = 0.2
    copy: float = 0.1
    crop: float = 0.0
    mask_ratio: float = 0.3
    hidden_ratio: float = 0.5
    copy_min: int = 4
    copy_max: int = 15
    max_regions: int = 4
    crop_side: int = 48
    substitution: float = 0.0
    flip: float = 0.5

    def probabilities(self) -> np.ndarray:
        """(len(TASKS),) probabilities. Raises PretrainingDataError for negative weights or none above zero."""
        weights = np.array([getattr(self, task) for task in TASKS], dtype=np.float64)
        if (weights < 0).any() or weights.sum() <= 0:
            given = dict(zip(TASKS, weights.tolist(), strict=True))
            raise PretrainingDataError(f"pretraining weights must be non-negative and not all zero, got {given}")
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
    """One sample before collation: token ids without bos and eos, the image (H, W, 3), None when it is hidden, and the
    dictionary ids (h, w) of words that stand in for patches, -1 for a real patch."""

    source: list
    target: list
    image: Optional[np.ndarray]
    patch_words: Optional[np.ndarray] = None


def location_tokens(box, height: int, width: int, bins: int, num_bins: int) -> list[int]:
    """Four dictionary ids of a pixel box [x0, y0, x1, y1]: bin = round(coordinate / side x (num_bins - 1)), OFA's rule."""
    scaled = np.asarray(box, dtype=np.float64) / np.array([width, height, width, height]) * (num_bins - 1)
    return [bins + int(b) for b in np.clip(np.rint(scaled), 0, num_bins - 1)]


class PretrainingDataset(PlainBatches):
    """Row i of the shards as one sample of a randomly drawn task, a pure function of (seed, epoch, i).

    Args:
        rows: indexable rows with the columns image, captions, boxes.
        decode_image: bytes -> uint8 (H, W, 3).
        encode: text -> dictionary ids.
        symbols, mixture, seed: see the classes above.
        image_side: expected H and W of every image.
        patch_stride: pixels per patch of the model.
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
        patch_stride: int = 8,
        caption_ids: bool = False,
        decode_label_map: Optional[Callable[[bytes], np.ndarray]] = None,
    ):
        self.rows, self.decode_image, self.encode, self.symbols, self.mixture = rows, decode_image, encode, symbols, mixture
        self.seed, self.image_side, self.patch_stride, self.caption_ids = seed, image_side, patch_stride, caption_ids
        self.decode_label_map = decode_label_map
        self.probabilities = mixture.probabilities()

    def __len__(self) -> int:
        return len(self.rows)

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
        flip = bool(rng.random() < self.mixture.flip)
        example = self.make_example(task, row, image[:, ::-1] if flip else image, flip, rng)
        s = self.symbols
        sample = {
            "id": index,
            "task": TASKS.index(task),
            "source": torch.tensor([s.bos, *example.source, s.eos]),
            "target": torch.tensor([*example.target, s.eos]),
            "image": None if example.image is None else torch.from_numpy(np.ascontiguousarray(example.image.transpose(2, 0, 1))),
        }
        if example.image is not None and self.mixture.substitution > 0:
            cells = -(-example.image.shape[0] // self.patch_stride)
            words = np.full((cells, cells), -1) if example.patch_words is None else example.patch_words
            sample["patch_words"] = torch.from_numpy(words)
        if self.caption_ids:
            sample["caption_ids"] = torch.tensor(self.encode(self._caption(row, rng)))
        if self.decode_label_map is not None:
            label_map = self.decode_label_map(row["label_map"])
            sample["label_map"] = torch.from_numpy(np.ascontiguousarray(label_map[:, ::-1] if flip else label_map)).long()
        return sample

    def make_example(self, task: str, row: dict, image: np.ndarray, flip: bool, rng: np.random.Generator) -> Example:
        """Source and target token ids of one task on one row; `image` is already mirrored when `flip` says so."""
        encode, s = self.encode, self.symbols
        if task == "caption":
            return Example(encode(CAPTION_PROMPT), encode(self._caption(row, rng)), image, self._stand_ins(row, flip, rng))
        if task == "crop":
            cut, text, place = self._cut_region(row, image, flip, rng)
            words = self._stand_ins({"boxes": [{"box": place, "text": text}]}, False, rng, self.mixture.crop_side, share=1.0)
            return Example(encode(CAPTION_PROMPT), encode(text), cut, words)
        if task == "box":
            regions = self._regions(row, rng, flip, int(rng.integers(1, self.mixture.max_regions + 1)))
            source = [token for place, _ in regions for token in (*encode(REGION_PROMPT), *place)]
            target = [token for _, words in regions for token in words]
            return Example([*encode(BOX_PROMPT), *source], target, image, self._stand_ins(row, flip, rng))
        if task == "ground":
            ((place, words),) = self._regions(row, rng, flip, 1)
            return Example([*encode(GROUND_PROMPT[0]), *words, *encode(GROUND_PROMPT[1])], place, image)
        if task == "infill":
            words = np.array(encode(self._caption(row, rng)))
            shown = np.where(rng.random(len(words)) < self.mixture.mask_ratio, s.mask, words)
            image = image if rng.random() >= self.mixture.hidden_ratio else None
        else:
            words = shown = rng.choice(s.words, int(rng.integers(self.mixture.copy_min, self.mixture.copy_max + 1)))
            image = None
        patch_words = None if image is None else self._stand_ins(row, flip, rng)
        return Example([*encode(INFILL_PROMPT[0]), *shown.tolist(), *encode(INFILL_PROMPT[1])], words.tolist(), image, patch_words)

    def _stand_ins(self, row: dict, flip: bool, rng: np.random.Generator, side: int = 0, share: float = 0.5) -> Optional[np.ndarray]:
        """(h, w) word ids inside boxes, -1 elsewhere; None when this sample keeps all its patches or has no boxes.

        A patch belongs to the smallest box that holds its centre, so that words of backgrounds do not cover objects. Each box
        is used with probability `share`; a random part of its patches is replaced.
        """
        if rng.random() >= self.mixture.substitution or not row.get("boxes"):
            return None
        side = side or self.image_side
        centres = (np.arange(-(-side // self.patch_stride)) + 0.5) * self.patch_stride
        owner = np.full((len(centres), len(centres)), -1)
        places = [(self._mirrored(box["box"]) if flip else box["box"], box["text"]) for box in row["boxes"]]
        places.sort(key=lambda place: (place[0][0] - place[0][2]) * (place[0][3] - place[0][1]))  # large boxes first
        for k, ((x0, y0, x1, y1), _) in enumerate(places):
            owner[((centres >= y0) & (centres <= y1))[:, None] & ((centres >= x0) & (centres <= x1))] = k
        words = np.full_like(owner, -1)
        for k, (_, text) in enumerate(places):
            if rng.random() < share:
                words[(owner == k) & (rng.random(owner.shape) < rng.random())] = rng.choice(self.encode(text))
        return words

    def _cut_region(self, row: dict, image: np.ndarray, flip: bool, rng: np.random.Generator) -> tuple[np.ndarray, str, list]:
        """(crop_side, crop_side, 3) grey image with one region of a row pasted at a random place, the region's text and place.

        Regions that fit are preferred; of a larger one a random window is shown.
        """
        side = self.mixture.crop_side
        boxes = self._boxes(row)
        small = [box for box in boxes if max(box["box"][2] - box["box"][0], box["box"][3] - box["box"][1]) <= side] or boxes
        entry = small[rng.integers(len(small))]
        x0, y0, x1, y1 = (int(round(v)) for v in (self._mirrored(entry["box"]) if flip else entry["box"]))
        height, width = min(y1 - y0, side), min(x1 - x0, side)
        top, left = rng.integers(y0, y1 - height + 1), rng.integers(x0, x1 - width + 1)
        down, right = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        cut = np.full((side, side, 3), CROP_FILL, dtype=np.uint8)
        cut[down : down + height, right : right + width] = image[top : top + height, left : left + width]
        return cut, entry["text"], [right, down, right + width, down + height]

    def _mirrored(self, box) -> list:
        x0, y0, x1, y1 = box
        return [self.image_side - x1, y0, self.image_side - x0, y1]

    def _boxes(self, row: dict) -> list:
        if not row.get("boxes"):
            raise PretrainingDataError(
                f"row {row.get('id', '?')} has no boxes; set the weights of box, ground and crop to 0, or add a boxes column"
            )
        return row["boxes"]

    def _caption(self, row: dict, rng: np.random.Generator) -> str:
        if not row.get("captions"):
            raise PretrainingDataError(f"row {row.get('id', '?')} has no caption; pretraining needs a captions column")
        return row["captions"][rng.integers(len(row["captions"]))]

    def _regions(self, row: dict, rng: np.random.Generator, flip: bool, number: int) -> list[tuple[list, list]]:
        """(location tokens, word ids) of up to `number` different boxes of a row, in random order."""
        boxes, side, s = self._boxes(row), self.image_side, self.symbols
        regions = []
        for k in rng.permutation(len(boxes))[:number]:
            place = self._mirrored(boxes[k]["box"]) if flip else boxes[k]["box"]
            regions.append((location_tokens(place, side, side, s.bins, s.num_bins), self.encode(boxes[k]["text"])))
        return regions

    def collater(self, samples: list) -> dict:
        """Batch of up to three parts: `net_input` with whole images, `region_input` with cut-outs, `text_input` without images.

        A part without samples is None. id (B,), target (B, T), tasks (B,) follow the order of the parts; on request
        caption_ids (n, L) and label_maps (n, H, W) belong to the n whole images. `net_input_words` and `region_input_words` (n, h, w)
        hold the word ids that stand in for patches, -1 for none. Inputs: src_tokens, prev_output_tokens, and
        patch_images uint8.
        """
        if not samples:
            return {}
        parts: dict[str, list] = {part: [] for part in INPUTS}
        for sample in samples:
            image = sample["image"]
            parts["text_input" if image is None else "net_input" if image.shape[-1] == self.image_side else "region_input"].append(sample)
        whole = parts["net_input"]
        samples = [sample for part in INPUTS for sample in parts[part]]
        target = pad_sequences([sample["target"] for sample in samples], self.symbols.pad)
        batch = {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int((target != self.symbols.pad).sum()),
            "target": target,
            "tasks": torch.tensor([sample["task"] for sample in samples]),
        }
        for part, rows in zip(INPUTS, target.split([len(parts[part]) for part in INPUTS]), strict=True):
            batch[part] = self._inputs(parts[part], rows) if parts[part] else None
            if parts[part] and "patch_words" in parts[part][0]:
                batch[f"{part}_words"] = torch.stack([sample["patch_words"] for sample in parts[part]])
        if self.caption_ids and whole:
            batch["caption_ids"] = pad_sequences([sample["caption_ids"] for sample in whole], self.symbols.pad)
        if self.decode_label_map is not None and whole:
            batch["label_maps"] = torch.stack([sample["label_map"] for sample in whole])
        return batch

    def _inputs(self, samples: list, target: Tensor) -> dict:
        """Source tokens, the target moved right by one behind bos, and the images if there are any."""
        pad = self.symbols.pad
        prev = torch.full_like(target, pad)
        prev[:, 0] = self.symbols.bos
        prev[:, 1:] = target[:, :-1].masked_fill(target[:, 1:] == pad, pad)
        inputs = {"src_tokens": pad_sequences([sample["source"] for sample in samples], pad), "prev_output_tokens": prev}
        if samples[0]["image"] is not None:
            inputs["patch_images"] = torch.stack([sample["image"] for sample in samples])
        return inputs

    def ordered_indices(self) -> np.ndarray:
        """Rows in an order drawn from (seed, epoch)."""
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self))


def pad_sequences(sequences: list, pad: int) -> Tensor:
    """(B, longest) long tensor, right-padded with `pad`."""
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
