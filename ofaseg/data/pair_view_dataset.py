"""FairseqDataset of (photo, class) pairs: shards of photos with label maps, seen as binary segmentation of one or several classes."""

from typing import Callable, Optional, Sequence

import numpy as np
import torch
from torch.utils.data import default_collate

from ofaseg.data.class_pairs import PairIndex
from ofaseg.data.present_classes import PresentClasses
from ofaseg.data.row_dataset import Transform
from ofaseg.data.segmentation_dataset import SegmentationDataset, decode_pair
from ofaseg.data.shards import ShardReader
from ofaseg.data.transforms import to_tensors
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary


def binary_masks(label_map: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """(K, H, W) int8 from (H, W) class ids: 1 where a pixel is of class k, 0 where it is not, `IGNORE_INDEX` where it has no label."""
    masks = (label_map == np.asarray(classes, dtype=label_map.dtype)[:, None, None]).astype(np.int8)
    masks[:, label_map == IGNORE_INDEX] = IGNORE_INDEX
    return masks


class PairViewDataset(SegmentationDataset):
    """One sample per (photo, class) pair, over shards that are written once for all folds.

    `dataset[p]` is pair p after decoding and transforming; its random state is a pure function of (seed, epoch, p). The first class of
    a sample is that of the pair. Further ones, K in all, are drawn from `classes`: at first others that the photo shows, then
    classes that it does not show. Every sample has K classes, so batches need no padding: where a photo shows too few, absent
    ones take the places, and the reverse. Pixels of any other class are 0.

    Args:
        reader, vocabulary, seed, on_bad_sample, batch_size_key: see `SegmentationDataset`.
        pairs: from `class_pairs.choose_pairs`.
        transform: sample, random generator -> sample; works on the label map of class ids, before it is split into masks.
        training: shuffle pairs each epoch; otherwise keep their order and carry targets at native size.
        num_present: classes that the photo shows, with that of the pair, at least 1.
        num_absent: classes that it does not show. K is `num_present + num_absent`.
        classes: class ids to draw further ones from (in training those of the base classes); needed for K above 1.
        present: the classes of each row; needed for K above 1.

    Raises:
        ValueError: an unknown `on_bad_sample`, or K classes cannot be had.
    """

    def __init__(
        self,
        reader: ShardReader,
        vocabulary: ClassVocabulary,
        pairs: PairIndex,
        transform: Transform,
        training: bool,
        seed: int = 1,
        on_bad_sample: str = "skip",
        batch_size_key: Optional[Callable[[int, int], tuple[int, int]]] = None,
        num_present: int = 1,
        num_absent: int = 0,
        classes: Sequence[int] = (),
        present: Optional[PresentClasses] = None,
    ):
        super().__init__(reader, vocabulary, transform, training, seed, on_bad_sample, batch_size_key)
        self.pairs, self.present = pairs, present
        self.num_present, self.num_absent, self.classes = num_present, num_absent, np.asarray(classes, dtype=np.int64)
        if num_present < 1 or num_absent < 0:
            raise ValueError(f"{num_present} present and {num_absent} absent classes per sample; at least 1 and 0 are needed")
        if self.num_classes > 1 and (present is None or self.num_classes > len(self.classes)):
            raise ValueError(f"{self.num_classes} classes per sample are to be drawn from {len(self.classes)}; lower the number")

    @property
    def num_classes(self) -> int:
        """K, the classes of every sample."""
        return self.num_present + self.num_absent

    def __len__(self) -> int:
        return len(self.pairs)

    def _size_key(self, index: int) -> tuple[int, int]:
        return super()._size_key(int(self.pairs.rows[index]))

    def load(self, index: int) -> dict:
        """The sample of pair `index`.

        Returns:
            dict with id (pair), row_id, image (3, h, w) uint8, class_ids (K,) long, target (K, h, w) int8 as `binary_masks`,
            native_size (H, W); in evaluation also native_target (K, H, W) int8.

        Raises:
            ShardError, CodecError: the row is broken; the message names file, row and column.
        """
        row = int(self.pairs.rows[index])
        stored = self.reader.read(row, columns=[name for name in ("image", "label_map") if name in self.reader.columns])
        image, label_map = decode_pair(stored, self.vocabulary, lambda column="": self.reader.location(row, column))
        rng = np.random.default_rng((self.seed, self.epoch, index))
        classes = self._sample_classes(row, int(self.pairs.classes[index]), rng)
        changed = self.transform({"image": image, "label_map": label_map}, rng)
        target = torch.from_numpy(binary_masks(changed.pop("label_map"), classes))
        sample = to_tensors(changed)
        sample.update(id=index, row_id=row, class_ids=torch.tensor(classes), target=target, native_size=image.shape[:2])
        if not self.training:
            sample["native_target"] = torch.from_numpy(binary_masks(label_map, classes))
        return sample

    def _sample_classes(self, row: int, first: int, rng: np.random.Generator) -> list[int]:
        """K class ids, `first` in front; the classes that a row shows are shuffled, so are those that it does not show."""
        if self.num_classes == 1:
            return [first]
        others = self.classes[self.classes != first]
        is_shown = np.isin(others, self.present.of_row(row))
        shown, absent = rng.permutation(others[is_shown]), rng.permutation(others[~is_shown])
        taken = min(len(shown), max(self.num_present - 1, self.num_classes - 1 - len(absent)))
        return [first, *shown[:taken].tolist(), *absent[: self.num_classes - 1 - taken].tolist()]

    def collater(self, samples: list) -> dict:
        """A batch of B pairs.

        - id (B,) pair numbers, row_ids (B,) row numbers, nsentences and ntokens B, bad_rows (messages of pairs that failed),
        - net_input: image (B, 3, h, w) uint8, class_ids (B, K) long,
        - target (B, K, h, w) int8: 1 the class, 0 not the class, `IGNORE_INDEX` no label,
        - native_sizes, list of B (H_i, W_i); in evaluation also native_targets, list of B (K, H_i, W_i) int8.

        What becomes of batches that lost rows: see `SegmentationDataset.batch_of`.
        """
        batch, good = self.batch_of(samples)
        if not good:
            return batch
        batch["row_ids"] = torch.tensor([s["row_id"] for s in good], dtype=torch.long)
        batch["net_input"] = {name: default_collate([s[name] for s in good]) for name in ("image", "class_ids")}
        batch["target"] = default_collate([s["target"] for s in good])
        batch["native_sizes"] = [s["native_size"] for s in good]
        if not self.training:
            batch["native_targets"] = [s["native_target"] for s in good]
        return batch
