"""Vision-language pretraining as token sequences: captions, region descriptions, text infilling and copying.

The tasks and their prompts follow OFA (section 3.3 of its paper): a row's image, captions and boxes become a source sentence and a
target sentence. The image is hidden in all copying samples and in half of the infilling samples. No sample is made from a label map.
"""

from collections.abc import Callable
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from ofaseg.data.codec import decode_image
from ofaseg.data.pretraining_mixture import TASKS, PretrainingMixture
from ofaseg.data.rows import ShardError
from ofaseg.data.segmentation_dataset import BadRow, SegmentationDataset, decode_pair
from ofaseg.data.shards import ShardReader
from ofaseg.tokenizers import TokenizerError
from ofaseg.vocabulary import ClassVocabulary

INPUTS = ("net_input", "region_input", "text_input")
CROP_FILL = 127
"""Grey value around the cut-out of a region."""
CAPTION_PROMPT = "what does the image describe?"
BOX_PROMPT = "what does the region describe?"
REGION_PROMPT = "region:"
GROUND_PROMPT = ("which region does the text", "describe?")
INFILL_PROMPT = ("what is the complete text of", "?")
IMAGE_COLUMNS = ("image", "captions", "boxes")


class PretrainingDataError(ShardError):
    """A row lacks what a pretraining task needs; the message names file, row and column."""


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
    """One sample before collation.

    Attributes:
        part: the part of a batch it belongs to, one of `INPUTS`.
        source, target: token ids without bos and eos.
        image: (H, W, 3), or None when it is hidden.
        patch_words: (h, w) dictionary ids of words that stand in for patches, -1 for a real patch; None for none.
    """

    part: str
    source: list
    target: list
    image: Optional[np.ndarray]
    patch_words: Optional[np.ndarray] = None


def location_tokens(box, height: int, width: int, bins: int, num_bins: int) -> list[int]:
    """Four dictionary ids of a pixel box [x0, y0, x1, y1]: bin = round(coordinate / side x (num_bins - 1)), OFA's rule."""
    scaled = np.asarray(box, dtype=np.float64) / np.array([width, height, width, height]) * (num_bins - 1)
    return [bins + int(b) for b in np.clip(np.rint(scaled), 0, num_bins - 1)]


def clip_box(box, side: int) -> list[float]:
    """The part [x0, y0, x1, y1] of a pixel box that lies in an image of `side` x `side`.

    Raises:
        ValueError: not four finite numbers, a reversed or empty box, or one outside the image.
    """
    numbers = np.asarray(box, dtype=np.float64)
    if numbers.shape != (4,) or not np.isfinite(numbers).all():
        raise ValueError("is not four finite numbers x0, y0, x1, y1")
    if not (numbers[:2] < numbers[2:]).all():
        raise ValueError("needs x0 < x1 and y0 < y1")
    clipped = np.clip(numbers, 0, side)
    if not (clipped[:2] < clipped[2:]).all():
        raise ValueError(f"lies outside the image of {side}x{side} pixels")
    return clipped.tolist()


class PretrainingDataset(SegmentationDataset):
    """Row i of the shards as one sample of a randomly drawn task, a pure function of (seed, epoch, i).

    Bad rows are treated as in every dataset of photos, see `on_bad_sample` there.

    Args:
        reader: the shards, with the columns image, captions, boxes.
        vocabulary: how stored labels map to class ids; read only with `label_maps`.
        encode: text -> dictionary ids.
        symbols, mixture, seed: see their classes.
        image_side: expected H and W of every image.
        patch_stride: pixels per patch of the model.
        caption_ids: also hand out the token ids of one caption per sample, for the alignment losses.
        label_maps: for diagnostics in validation: also hand out label maps (H, W), mirrored with the image.
        training: a batch that lost all its rows takes the next readable one, so that every rank has a step to take.
        on_bad_sample: "skip" or "raise".
    """

    def __init__(
        self,
        reader: ShardReader,
        vocabulary: Optional[ClassVocabulary],
        encode: Callable[[str], list[int]],
        symbols: PretrainingSymbols,
        mixture: PretrainingMixture,
        seed: int,
        image_side: int,
        patch_stride: int = 8,
        caption_ids: bool = False,
        label_maps: bool = False,
        training: bool = True,
        on_bad_sample: str = "skip",
    ):
        super().__init__(reader, vocabulary, transform=None, training=training, seed=seed, on_bad_sample=on_bad_sample)
        self.encode, self.symbols, self.mixture = encode, symbols, mixture
        self.image_side, self.patch_stride, self.caption_ids, self.label_maps = image_side, patch_stride, caption_ids, label_maps
        self.probabilities = mixture.probabilities()
        mixture.check_crop_side(image_side, patch_stride)

    # ---- rows ----

    def read_row(self, index: int) -> dict:
        """Row `index` with its decoded image (H, W, 3), clipped boxes, "place" (file, row in it), and its label map when wanted.

        Raises:
            ShardError, CodecError: the row is broken; the message names file, row and column.
        """
        row = self.reader[index]
        row["place"] = self.reader.locate(index)

        def where(column: str = "") -> str:
            return self.reader.location(index, column)

        if self.label_maps:
            row["image"], row["label_map"] = decode_pair(row, self.vocabulary, where)
        else:
            row["image"] = decode_image(row["image"], where("image"))
        height, width = row["image"].shape[:2]
        if (height, width) != (self.image_side, self.image_side):
            problem = f"the image is {height}x{width}, this model is pretrained on {self.image_side}x{self.image_side}"
            raise _bad(row, "image", f"{problem}; resize the shards or set --patch-image-size")
        if self.mixture.reads_boxes:
            row["boxes"] = [self._checked_box(row, k) for k in range(len(row["boxes"]))]
        return row

    def _checked_box(self, row: dict, k: int) -> dict:
        entry = row["boxes"][k]
        if not isinstance(entry, dict):  # Parquet files of other writers may hold nulls in any list
            raise _bad(row, "boxes", f"box {k} is not a box with a text ({entry!r:.60}); correct it or leave it out")
        try:
            box = clip_box(entry["box"], self.image_side)
        except ValueError as error:
            raise _bad(row, "boxes", f"box {k} {entry['box']} {error}; correct it or leave it out") from error
        if not (entry["text"] or "").strip():
            raise _bad(row, "boxes", f"box {k} has no text; describe it or leave it out")
        return {"box": box, "text": entry["text"]}

    def _mirrored(self, row: dict) -> dict:
        """The row with image, label map and boxes mirrored left to right."""
        side, result = self.image_side, row | {"image": row["image"][:, ::-1]}
        if self.mixture.reads_boxes:
            corners = [(entry["box"], entry["text"]) for entry in row["boxes"]]
            result["boxes"] = [{"box": [side - x1, y0, side - x0, y1], "text": text} for (x0, y0, x1, y1), text in corners]
        if self.label_maps:
            result["label_map"] = row["label_map"][:, ::-1]
        return result

    def _words(self, row: dict, column: str, text: str) -> list[int]:
        """Dictionary ids of a text of the row."""
        try:
            return self.encode(text)
        except TokenizerError as error:
            raise _bad(row, column, str(error)) from error

    def _boxes(self, row: dict) -> list:
        if not row["boxes"]:
            raise _bad(row, "boxes", "the row has no boxes; set the weights of box, ground and crop to 0, or add some")
        return row["boxes"]

    def _caption(self, row: dict, rng: np.random.Generator) -> list[int]:
        """Dictionary ids of one of the row's captions."""
        if not row["captions"]:
            raise _bad(row, "captions", "the row has no caption; add one, or set the weights of caption and infill to 0")
        for k, text in enumerate(row["captions"]):
            if not isinstance(text, str):
                raise _bad(row, "captions", f"caption {k} is not a text ({text!r:.60}); correct it or leave it out")
        return self._words(row, "captions", row["captions"][rng.integers(len(row["captions"]))])

    # ---- samples ----

    def load(self, index: int) -> dict:
        """The sample of row `index`: its part of a batch, task, source and target with bos and eos, image (3, H, W) uint8 or None.

        Raises:
            ShardError, CodecError: the row is broken; the message names file, row and column.
        """
        row = self.read_row(index)
        rng = np.random.default_rng((self.seed, self.epoch, int(index)))
        task = TASKS[rng.choice(len(TASKS), p=self.probabilities)]
        if rng.random() < self.mixture.flip:
            row = self._mirrored(row)
        example = self.make_example(task, row, rng)
        s, image = self.symbols, example.image
        sample = {
            "id": index,
            "part": example.part,
            "task": TASKS.index(task),
            "source": torch.tensor([s.bos, *example.source, s.eos]),
            "target": torch.tensor([*example.target, s.eos]),
            "image": None if image is None else torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        }
        if image is not None and self.mixture.substitution > 0:
            cells = -(-image.shape[0] // self.patch_stride)
            words = np.full((cells, cells), -1) if example.patch_words is None else example.patch_words
            sample["patch_words"] = torch.from_numpy(words)
        if self.caption_ids:
            sample["caption_ids"] = torch.tensor(self._caption(row, rng))
        if self.label_maps:
            sample["label_map"] = torch.from_numpy(np.ascontiguousarray(row["label_map"])).long()
        return sample

    def make_example(self, task: str, row: dict, rng: np.random.Generator) -> Example:
        """Source and target token ids of one task on one row of `read_row`."""
        encode, image = self.encode, row["image"]
        if task == "caption":
            return Example("net_input", encode(CAPTION_PROMPT), self._caption(row, rng), image, self._stand_ins(row, row["boxes"], rng))
        if task == "crop":
            cut, region = self._cut_region(row, rng)
            words = self._stand_ins(row, [region], rng, self.mixture.crop_side, share=1.0)
            return Example("region_input", encode(CAPTION_PROMPT), self._words(row, "boxes", region["text"]), cut, words)
        if task == "box":
            regions = self._regions(row, rng, int(rng.integers(1, self.mixture.max_regions + 1)))
            source = [token for place, _ in regions for token in (*encode(REGION_PROMPT), *place)]
            target = [token for _, words in regions for token in words]
            return Example("net_input", [*encode(BOX_PROMPT), *source], target, image, self._stand_ins(row, row["boxes"], rng))
        if task == "ground":
            ((place, words),) = self._regions(row, rng, 1)
            return Example("net_input", [*encode(GROUND_PROMPT[0]), *words, *encode(GROUND_PROMPT[1])], place, image)
        return self._text_example(task, row, rng)

    def _text_example(self, task: str, row: dict, rng: np.random.Generator) -> Example:
        """Infilling and copying: text to text, beside the image or without it."""
        encode, s, image = self.encode, self.symbols, None
        if task == "infill":
            words = np.array(self._caption(row, rng))
            shown = np.where(rng.random(len(words)) < self.mixture.mask_ratio, s.mask, words)
            image = row["image"] if rng.random() >= self.mixture.hidden_ratio else None
        else:
            words = shown = rng.choice(s.words, int(rng.integers(self.mixture.copy_min, self.mixture.copy_max + 1)))
        source = [*encode(INFILL_PROMPT[0]), *shown.tolist(), *encode(INFILL_PROMPT[1])]
        if image is None:
            return Example("text_input", source, words.tolist(), None)
        return Example("net_input", source, words.tolist(), image, self._stand_ins(row, row["boxes"], rng))

    def _stand_ins(self, row: dict, boxes: list, rng: np.random.Generator, side: int = 0, share: float = 0.5) -> Optional[np.ndarray]:
        """(h, w) word ids inside boxes, -1 elsewhere; None when this sample keeps all its patches or has no boxes.

        A patch belongs to the smallest box that holds its centre, so that words of backgrounds do not cover objects. Each box
        is used with probability `share`; a random part of its patches is replaced.
        """
        if rng.random() >= self.mixture.substitution or not boxes:
            return None
        side = side or self.image_side
        centres = (np.arange(-(-side // self.patch_stride)) + 0.5) * self.patch_stride
        owner = np.full((len(centres), len(centres)), -1)
        places = [(entry["box"], entry["text"]) for entry in boxes]
        places.sort(key=lambda place: (place[0][0] - place[0][2]) * (place[0][3] - place[0][1]))  # large boxes first
        for k, ((x0, y0, x1, y1), _) in enumerate(places):
            owner[((centres >= y0) & (centres <= y1))[:, None] & ((centres >= x0) & (centres <= x1))] = k
        words = np.full_like(owner, -1)
        for k, (_, text) in enumerate(places):
            if rng.random() < share:
                words[(owner == k) & (rng.random(owner.shape) < rng.random())] = rng.choice(self._words(row, "boxes", text))
        return words

    def _cut_region(self, row: dict, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
        """(crop_side, crop_side, 3) grey image with one region of a row pasted at a random place; the region's text and new box.

        Regions that fit are preferred; of a larger one a random window is shown.
        """
        side = self.mixture.crop_side
        boxes = self._boxes(row)
        small = [entry for entry in boxes if max(entry["box"][2] - entry["box"][0], entry["box"][3] - entry["box"][1]) <= side] or boxes
        entry = small[rng.integers(len(small))]
        x0, y0, x1, y1 = (int(round(v)) for v in entry["box"])
        height, width = min(y1 - y0, side), min(x1 - x0, side)
        top, left = rng.integers(y0, y1 - height + 1), rng.integers(x0, x1 - width + 1)
        down, right = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        cut = np.full((side, side, 3), CROP_FILL, dtype=np.uint8)
        cut[down : down + height, right : right + width] = row["image"][top : top + height, left : left + width]
        return cut, {"box": [right, down, right + width, down + height], "text": entry["text"]}

    def _regions(self, row: dict, rng: np.random.Generator, number: int) -> list[tuple[list, list]]:
        """(location tokens, word ids) of up to `number` different boxes of a row, in random order."""
        boxes, side, s = self._boxes(row), self.image_side, self.symbols
        regions = []
        for k in rng.permutation(len(boxes))[:number]:
            place = location_tokens(boxes[k]["box"], side, side, s.bins, s.num_bins)
            regions.append((place, self._words(row, "boxes", boxes[k]["text"])))
        return regions

    # ---- batches ----

    def collater(self, samples: list) -> dict:
        """Batch of up to three parts: `net_input` with whole images, `region_input` with cut-outs, `text_input` without images.

        A part without samples is None. id (B,), target (B, T), tasks (B,) follow the order of the parts; on request
        caption_ids (n, L) and label_maps (n, H, W) belong to the n whole images. `net_input_words` and `region_input_words` (n, h, w)
        hold the word ids that stand in for patches, -1 for none. Inputs: src_tokens, prev_output_tokens, and
        patch_images uint8. `ntokens` counts the target tokens; rows that failed are listed under `bad_rows`.
        """
        if not samples:
            return {}
        bad = [sample for sample in samples if isinstance(sample, BadRow)]
        samples = [sample for sample in samples if not isinstance(sample, BadRow)]
        if not samples and self.training:
            samples = [self._another_row(bad)]
        parts = {part: [sample for sample in samples if sample["part"] == part] for part in INPUTS}
        samples = [sample for part in INPUTS for sample in parts[part]]
        target = pad_sequences([sample["target"] for sample in samples], self.symbols.pad)
        batch = {
            "id": torch.tensor([sample["id"] for sample in samples], dtype=torch.long),
            "nsentences": len(samples),
            "ntokens": int((target != self.symbols.pad).sum()),
            "target": target,
            "tasks": torch.tensor([sample["task"] for sample in samples], dtype=torch.long),
            "bad_rows": [row.message for row in bad],
        }
        for part, rows in zip(INPUTS, target.split([len(parts[part]) for part in INPUTS]), strict=True):
            batch[part] = self._inputs(parts[part], rows) if parts[part] else None
            if parts[part] and "patch_words" in parts[part][0]:
                batch[f"{part}_words"] = torch.stack([sample["patch_words"] for sample in parts[part]])
        whole = parts["net_input"]
        if self.caption_ids and whole:
            batch["caption_ids"] = pad_sequences([sample["caption_ids"] for sample in whole], self.symbols.pad)
        if self.label_maps and whole:
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


def _bad(row: dict, column: str, problem: str) -> PretrainingDataError:
    file, number = row["place"]
    return PretrainingDataError.at(file, problem, number, column)


def pad_sequences(sequences: list, pad: int) -> Tensor:
    """(B, longest) long tensor, right-padded with `pad`; (0, 0) without sequences."""
    if not sequences:
        return torch.zeros(0, 0, dtype=torch.long)
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
