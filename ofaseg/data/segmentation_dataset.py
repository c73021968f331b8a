"""FairseqDatasets of dense segmentation: rows of shards, decoded, transformed and collated."""

import os
import shlex
from typing import Callable, Optional

import numpy as np
import torch
from torch.utils.data import default_collate

from ofaseg.data import codec
from ofaseg.data.row_dataset import ON_BAD_SAMPLE, BadRow, PlainBatches, RowDataset, TooManyBadRows, Transform
from ofaseg.data.segments import checked_instances, decode_segments
from ofaseg.data.shards import ShardError, ShardReader
from ofaseg.data.transforms import to_tensors
from ofaseg.vocabulary import ClassVocabulary

__all__ = ["ON_BAD_SAMPLE", "BadRow", "PlainBatches", "SegmentationDataset", "TooManyBadRows", "decode_pair"]


SEGMENT_COLUMNS = ("segment_map", "segments", "instances")
NATIVE_LISTS = {"native_segment_map": "native_segment_maps", "native_segments": "native_segments", "native_instances": "native_instances"}
"""Key of a sample -> key of a batch, for what is carried at native size by `with_segments`."""


class SegmentationDataset(RowDataset):
    """Photos with label maps.

    `dataset[i]` is row i of the reader after decoding and transforming; its random state is a pure function of
    (seed, epoch, i). A row that cannot be decoded is logged and left out of its batch; the others go on.

    Args:
        reader: the shards.
        vocabulary: how stored labels map to class ids.
        transform: sample, random generator -> sample.
        training: shuffle rows each epoch; otherwise keep their order and carry labels at native size.
        on_bad_sample: "skip" leaves bad rows out (`TooManyBadRows` after `MAX_BAD_IN_A_ROW` without a good one between them),
            "raise" raises at the first.
        batch_size_key: (height, width) of a photo -> its size after the transform; photos of equal key share a batch.
        with_segments: without training, also carry segments and instances at native size, as far as the reader has them.

    Raises:
        ValueError: another `on_bad_sample`.
    """

    carried = NATIVE_LISTS
    """Key of a sample -> key of a batch, for what a batch lists photo by photo."""

    def __init__(
        self,
        reader: ShardReader,
        vocabulary: ClassVocabulary,
        transform: Transform,
        training: bool,
        seed: int = 1,
        on_bad_sample: str = "skip",
        batch_size_key: Optional[Callable[[int, int], tuple[int, int]]] = None,
        with_segments: bool = False,
    ):
        super().__init__(training, seed, on_bad_sample)
        self.segment_columns = [c for c in SEGMENT_COLUMNS if c in reader.columns] if with_segments and not training else []
        self.reader, self.vocabulary, self.transform, self.batch_size_key = reader, vocabulary, transform, batch_size_key
        self._size_keys: dict[int, tuple[int, int]] = {}  # a split's headers are read once, not at every validation

    def __len__(self) -> int:
        return len(self.reader)

    def batch_groups(self, indices: np.ndarray, chunk: int) -> list[np.ndarray]:
        if self.training or chunk == 1 or self.batch_size_key is None:
            return [indices]
        groups: dict[tuple, list[int]] = {}
        for index in indices:
            groups.setdefault(self._size_key(int(index)), []).append(int(index))
        return [np.asarray(group) for group in groups.values()]

    def _size_key(self, index: int) -> tuple[int, int]:
        if index not in self._size_keys:
            try:
                self._size_keys[index] = self.batch_size_key(*self.reader.image_size(index))
            except (ShardError, codec.CodecError):
                self._size_keys[index] = (0, 0)  # decoding reports it
        return self._size_keys[index]

    def bad_rows_advice(self) -> str:
        folder = os.path.dirname(self.reader.paths[0]) or "."
        return f"`ofaseg doctor {shlex.quote(folder)}` lists what is wrong with each row"

    def load(self, index: int) -> dict:
        """The sample of row `index`: image (3, H, W) uint8, label_map (H, W) int16 or int32, native_size, native_label_map.

        Raises:
            ShardError, CodecError: the row is broken; the message names file, row and column.
        """
        columns = [name for name in ("image", "label_map") if name in self.reader.columns]
        row = self.reader.read(index, columns=columns + self.segment_columns)
        image, label_map = decode_pair(row, self.vocabulary, lambda column="": self.reader.location(index, column))
        sample = {"image": image, "label_map": label_map}
        rng = np.random.default_rng((self.seed, self.epoch, index))
        native_size = image.shape[:2]
        out = to_tensors(self.transform(sample, rng))
        out.update(id=index, native_size=native_size)
        if not self.training:
            out["native_label_map"] = torch.from_numpy(label_map)
        return out | self._segments(row, native_size, lambda column="": self.reader.location(index, column))

    def _segments(self, row: dict, size: tuple[int, int], where: Callable[..., str]) -> dict:
        """Segments and instances of a row under the keys of `NATIVE_LISTS`. Raises CodecError."""
        found = {}
        if {"segment_map", "segments"} <= set(self.segment_columns):
            segment_map, found["native_segments"] = decode_segments(row, self.vocabulary, size, where)
            found["native_segment_map"] = torch.from_numpy(segment_map)
        if "instances" in self.segment_columns:
            found["native_instances"] = checked_instances(row, self.vocabulary, size, where)
        return found

    def batch_of(self, samples: list) -> tuple[dict, list[dict]]:
        """What every batch begins with (id, nsentences, ntokens, bad_rows, an empty net_input), and the samples that it is made of.

        A training batch that lost all its rows takes another readable one, so that every rank has a step to take. One
        without rows is {}, by which fairseq knows that this rank has run out of batches before the others.
        """
        if not samples and self.training:
            return {}, []
        bad = [sample for sample in samples if isinstance(sample, BadRow)]
        good = [sample for sample in samples if not isinstance(sample, BadRow)]
        if not good and bad and self.training:
            good = [self._another_row(bad)]
        batch = {"id": torch.tensor([s["id"] for s in good], dtype=torch.long), "nsentences": len(good), "ntokens": len(good)}
        return batch | {"bad_rows": [b.message for b in bad], "net_input": {}}, good

    def collater(self, samples: list) -> dict:
        """Batch of `ofaseg.structures`; rows that failed are listed under `bad_rows`, see `batch_of`."""
        batch, good = self.batch_of(samples)
        if not good:
            return batch
        # stacked right into shared memory in a data worker, so that handing the batch over copies nothing
        batch["net_input"]["image"] = default_collate([s["image"] for s in good])
        batch["native_sizes"] = [s["native_size"] for s in good]
        if self.training:
            batch["target"] = default_collate([s["label_map"] for s in good])
        if all("native_label_map" in s for s in good):
            batch["native_label_maps"] = [s["native_label_map"] for s in good]
        for key, name in self.carried.items():
            if key in good[0]:
                batch[name] = [s[key] for s in good]
        return batch


def decode_pair(row: dict, vocabulary: ClassVocabulary, where: Callable[..., str]) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 and label map (H, W) int16, or int32 where ids need it, of a row; `where(column)` names the place in messages.

    Raises:
        CodecError: the row has no label map, either cannot be decoded, or their sizes differ.
    """
    image = codec.decode_image(row["image"], where=where("image"))
    if not row.get("label_map"):
        problem = "the row has no label map; leave it out of the shards, or segment it with `ofaseg predict`"
        raise codec.CodecError(f"{where('label_map')}: {problem}")
    label_map = codec.decode_label_map(row["label_map"], vocabulary, where("label_map"), codec.narrow_dtype(vocabulary))
    if label_map.shape != image.shape[:2]:
        raise codec.CodecError(
            f"{where()}: the label map is {label_map.shape[0]}x{label_map.shape[1]} (height x width), the image "
            f"{image.shape[0]}x{image.shape[1]}; they must have one size (check whether the EXIF rotation was applied to one of them)"
        )
    return image, label_map
