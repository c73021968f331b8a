"""FairseqDataset of regions: one sample per class, object or segment of a photo, cut out (FreeSeg, prompt learning)."""

import numpy as np
import torch
from torch.utils.data import default_collate

from ofaseg.data.codec import CodecError
from ofaseg.data.mask_target_dataset import SEMANTIC
from ofaseg.data.regions import TASKS, Regions
from ofaseg.data.row_dataset import Transform
from ofaseg.data.segmentation_dataset import SegmentationDataset, decode_pair
from ofaseg.data.segments import SOURCES, decode_segments
from ofaseg.data.shards import ShardReader
from ofaseg.data.transforms import to_tensors
from ofaseg.vocabulary import ClassVocabulary


class RegionDataset(SegmentationDataset):
    """`dataset[n]` is region n, cut out and resized; its random state is a pure function of (seed, epoch, n).

    A batch has, beside what every batch has,

    - net_input: image (B, 3, h, w) uint8; masks (B, h, w) bool; tasks, the tasks that occur, in the order of `TASKS`; task_rows
      (B,) long, the place of each region's task among them,
    - target (B,) long class ids.

    Args:
        reader, vocabulary, seed, on_bad_sample: see `SegmentationDataset`.
        regions: from `ofaseg.data.regions`.
        transform: sample, random generator -> sample, see `ofaseg.data.region_transforms`.
        training: shuffle each epoch; otherwise keep the order of `regions`.
        keep_order: keep it in training, too (as the published code does, whose batches so hold one class).
        task_of_first: every region of a batch is taken for one of the task of the first (as the published code does).
    """

    def __init__(
        self,
        reader: ShardReader,
        vocabulary: ClassVocabulary,
        regions: Regions,
        transform: Transform,
        training: bool,
        seed: int = 1,
        on_bad_sample: str = "skip",
        keep_order: bool = False,
        task_of_first: bool = False,
    ):
        super().__init__(reader, vocabulary, transform, training, seed, on_bad_sample)
        self.regions, self.keep_order, self.task_of_first = regions, keep_order, task_of_first

    def __len__(self) -> int:
        return len(self.regions)

    def ordered_indices(self) -> np.ndarray:
        return np.arange(len(self)) if self.keep_order else super().ordered_indices()

    def load(self, index: int) -> dict:
        """The sample of region `index`: image (3, h, w) uint8, label_map (h, w) uint8, class_id, task.

        Raises:
            ShardError, CodecError: the row is broken, or no longer shows the region; the message names file, row and column.
        """
        row, value, task = int(self.regions.rows[index]), int(self.regions.values[index]), TASKS[self.regions.tasks[index]]
        semantic = task == SEMANTIC
        stored = self.reader.read(row, columns=["image", "label_map", *(() if semantic else SOURCES)])

        def where(column: str = "") -> str:
            return self.reader.location(row, column)

        image, numbers = decode_pair(stored, self.vocabulary, where)
        if not semantic:
            numbers, _ = decode_segments(stored, self.vocabulary, image.shape[:2], where)
        mask = (numbers == value).astype(np.uint8)
        if not mask.any():
            kind, column = ("class", "label_map") if semantic else ("segment", "segment_map")
            raise CodecError(f"{where(column)}: {kind} {value} has no pixel; write the map and its list from the same source")
        rng = np.random.default_rng((self.seed, self.epoch, index))
        sample = to_tensors(self.transform({"image": image, "label_map": mask}, rng))
        return sample | {"id": index, "class_id": int(self.regions.classes[index]), "task": task}

    def collater(self, samples: list) -> dict:
        """A batch, see the class; what becomes of one that lost rows: see `SegmentationDataset.batch_of`."""
        batch, good = self.batch_of(samples)
        if not good:
            return batch
        of_samples = [good[0]["task"]] * len(good) if self.task_of_first else [sample["task"] for sample in good]
        tasks = tuple(task for task in TASKS if task in of_samples)
        batch["net_input"] = {
            "image": default_collate([sample["image"] for sample in good]),
            "masks": default_collate([sample["label_map"] for sample in good]).bool(),
            "tasks": tasks,
            "task_rows": torch.tensor([tasks.index(task) for task in of_samples]),
        }
        batch["target"] = torch.tensor([sample["class_id"] for sample in good])
        return batch
