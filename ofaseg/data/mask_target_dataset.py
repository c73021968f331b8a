"""Photos with the masks of their classes, objects and segments: what models of mask proposals are trained with."""

from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.data.segmentation_dataset import NATIVE_LISTS, SegmentationDataset, decode_pair
from ofaseg.data.segments import OBJECTS, SOURCES, check_segment_columns, decode_segments, drawn_instances
from ofaseg.data.transforms import to_tensors
from ofaseg.structures import MaskTargets
from ofaseg.vocabulary import IGNORE_INDEX, VocabularyError

SEMANTIC, INSTANCE, PANOPTIC = "semantic", "instance", "panoptic"


class MaskTargetDataset(SegmentationDataset):
    """`SegmentationDataset` whose batches also say which masks their label and segment maps hold.

    A training batch has, beside ``target`` (B, H, W), ``segment_maps``, a list of B integer tensors (H, W) of segment numbers, 0 = none
    (only where a task needs them), and ``mask_lists``, a list of B dicts: task -> (2, n) long, the values of the task's map that are a
    mask, and the row of each one's class. Semantic masks are the classes of the label map, panoptic ones the segments that are no
    crowds, instances those of things. What a crop has lost is no mask. Shards with objects alone (column instances) do for the task
    instance; where objects overlap, the smaller one is seen.

    A batch of evaluation has ``input_label_maps``, labels at the size of the model's photos, and their semantic ``mask_lists``.

    Args:
        tasks: of "semantic", "instance", "panoptic": what training batches have lists for.
        class_rows: K rows of the classes among those that training knows, -1 for classes held out. In evaluation each class is its row.
        options: of `SegmentationDataset`; its transform must treat the label map by nearest neighbours alone, whatever it holds.

    Raises:
        ShardError: the shards carry no segments, and a task needs them.
        VocabularyError: the vocabulary does not say which classes are things, and a task needs it.
    """

    carried = NATIVE_LISTS | {"mask_lists": "mask_lists", "segment_numbers": "segment_maps", "input_label_map": "input_label_maps"}

    def __init__(self, reader, vocabulary, transform, training: bool, tasks: Sequence[str], class_rows: Sequence[int], **options):
        super().__init__(reader, vocabulary, transform, training, **options)
        self.tasks, self.class_rows = tuple(tasks), np.asarray(class_rows if training else range(len(vocabulary)))
        self.needs_segments = training and bool({INSTANCE, PANOPTIC} & set(tasks))
        self.sources, self.decode_segments = SOURCES, decode_segments
        if self.needs_segments:
            have = set(reader.columns)
            if PANOPTIC not in tasks and have >= set(OBJECTS) and not have >= set(SOURCES):
                self.sources, self.decode_segments = OBJECTS, drawn_instances
            else:
                check_segment_columns(reader)
        if training and INSTANCE in tasks and not any(vocabulary.thing):
            raise VocabularyError(
                "the vocabulary marks no class as a thing, which the task instance needs; mark them in vocabulary.json (thing), or leave "
                "instance out of --tasks"
            )

    def load(self, index: int) -> dict:
        """As `SegmentationDataset.load`, with mask_lists, segment_numbers (H, W) and input_label_map (H, W), see the class."""
        if not self.training:
            sample = super().load(index)
            label_map = _nearest(sample["native_label_map"], sample["image"].shape[1:])
            return sample | {"input_label_map": label_map, "mask_lists": {SEMANTIC: self._classes_of(label_map)}}
        row = self.reader.read(index, columns=["image", "label_map", *(self.sources if self.needs_segments else ())])

        def where(column: str = "") -> str:
            return self.reader.location(index, column)

        image, label_map = decode_pair(row, self.vocabulary, where)
        segments, entries = None, []
        if self.needs_segments:
            segments, entries = self.decode_segments(row, self.vocabulary, image.shape[:2], where)
        joint, step = label_map.astype(np.int32) + 1, len(entries) + 1
        if segments is not None:  # both maps as one, so that they are cropped and mirrored alike
            entries = sorted(entries, key=lambda entry: entry["id"])
            joint = joint * step + np.searchsorted([0, *(entry["id"] for entry in entries)], segments).astype(np.int32)
        rng = np.random.default_rng((self.seed, self.epoch, index))
        sample = to_tensors(self.transform({"image": image, "label_map": joint}, rng))
        joint = sample["label_map"].clamp(min=0)  # what the transform pads with is no label and no segment
        sample["label_map"] = (joint // step - 1).to(torch.from_numpy(label_map).dtype)
        sample["mask_lists"] = {SEMANTIC: self._classes_of(sample["label_map"])}
        if segments is not None:
            sample["segment_numbers"] = (joint % step).int()
            sample["mask_lists"] |= self._segments_of(sample["segment_numbers"], entries)
        return sample | {"id": index, "native_size": image.shape[:2]}

    def _classes_of(self, label_map: Tensor) -> Tensor:
        """(2, n) class ids of a label map and their rows, without those held out."""
        values = np.unique(label_map.numpy())
        values = values[values != IGNORE_INDEX].astype(np.int64)
        return self._listed(values, values)

    def _segments_of(self, numbers: Tensor, entries: Sequence[dict]) -> dict[str, Tensor]:
        """Task -> (2, n) numbers of segments and the rows of their classes; segment k is `entries[k - 1]`."""
        shown = [k for k in np.unique(numbers.numpy()).tolist() if k and not entries[k - 1]["is_crowd"]]
        lists = {PANOPTIC: shown, INSTANCE: [k for k in shown if any(self.vocabulary.thing) and self._is_thing(entries[k - 1])]}
        return {task: self._listed(values, [entries[k - 1]["class_id"] for k in values]) for task, values in lists.items()}

    def _is_thing(self, entry: dict) -> bool:
        return bool(self.vocabulary.thing[entry["class_id"]])

    def _listed(self, values, class_ids) -> Tensor:
        rows = self.class_rows[np.asarray(class_ids, dtype=np.int64)]
        return torch.from_numpy(np.stack([np.asarray(values, dtype=np.int64), rows])[:, rows >= 0])


def _nearest(label_map: Tensor, size: Sequence[int]) -> Tensor:
    """A label map (H, W) at another size, (h, w)."""
    rows, columns = (torch.arange(new) * old // new for new, old in zip(size, label_map.shape))
    return label_map[rows][:, columns]


def mask_targets(maps: Sequence[Tensor], lists: Sequence[Tensor], multiple: int = 1) -> MaskTargets:
    """The masks of a batch.

    Args:
        maps: for each photo an integer map (H, W), all of one size.
        lists: for each photo (2, n): the values of its map that are a mask, and their classes.
        multiple: masks are extended on the right and below, by background, to multiples of so many pixels.
    """
    masks = torch.cat([part == values[0][:, None, None].to(part.dtype) for part, values in zip(maps, lists)])
    height, width = masks.shape[1:]
    masks = F.pad(masks, (0, -width % multiple, 0, -height % multiple))
    return MaskTargets(masks, torch.cat([values[1] for values in lists]), tuple(values.shape[1] for values in lists))
