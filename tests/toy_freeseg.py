"""Toy shards with segments, and a task and flags for FreeSeg of nano size over a CLIP of random weights."""

import numpy as np

from ofaseg.data import codec
from ofaseg.data.shards import ShardWriter
from ofaseg.vocabulary import ClassVocabulary
from tests.toy import NAMES, toy_photo
from user_tasks.unified_segmentation import UnifiedSegmentationConfig, UnifiedSegmentationTask

FLAGS = "--task unified_segmentation --criterion mask_matching --arch freeseg_nano --random-towers --patch-image-size 64".split()
FIRST_ID, ID_STEP = 70_000, 11
"""Ids of segments are neither small nor consecutive, as in COCO's files."""


def toy_segments(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Label map, segment map and list of a scene: red and green blocks, each an object, on blue ground; a column without label.

    The last block is a crowd.
    """
    label_map = np.full((height, width), 2, dtype=np.int32)
    ids = np.full((height, width), FIRST_ID, dtype=np.int32)
    entries = [{"id": FIRST_ID, "class_id": 2, "is_crowd": False}]
    for k in range(1, 4):
        top, left = int(rng.integers(0, height // 2)), int(rng.integers(2, width // 2))
        place, class_id = (slice(top, top + height // 3), slice(left, left + width // 3)), int(rng.integers(0, 2))
        label_map[place], ids[place] = class_id, FIRST_ID - ID_STEP * k
        entries.append({"id": FIRST_ID - ID_STEP * k, "class_id": class_id, "is_crowd": k == 3})
    label_map[:, :2], ids[:, :2] = -1, 0
    shown = [entry for entry in entries if (ids == entry["id"]).any()]
    return label_map, ids, [entry | {"area": int((ids == entry["id"]).sum()), "box": [0.0, 0.0, 1.0, 1.0]} for entry in shown]


def vocabulary_of(thing=(True, True, False), novel=()) -> ClassVocabulary:
    return ClassVocabulary(NAMES, thing=thing, novel=novel, source="toy")


def write_segment_shards(root, split: str, num: int, sizes=((72, 96),), seed: int = 0, vocabulary=None) -> ClassVocabulary:
    """Writes `num` rows of `toy_segments` whose sizes cycle through `sizes` (height, width); returns their vocabulary."""
    vocabulary, rng = vocabulary or vocabulary_of(), np.random.default_rng(seed)
    columns = ["image", "label_map", "id", "segment_map", "segments"]
    with ShardWriter(str(root), split, vocabulary, columns) as writer:
        for i in range(num):
            label_map, ids, entries = toy_segments(rng, *sizes[i % len(sizes)])
            row = {"id": f"{split}{i}", "image": codec.encode_image(toy_photo(rng, label_map), "png"), "segments": entries}
            row |= {"label_map": codec.encode_label_map(label_map, vocabulary), "segment_map": codec.encode_segment_map(ids)}
            writer.write(row)
    return vocabulary


def make_task(data="", vocabulary=None, **options) -> UnifiedSegmentationTask:
    places = dict(data=str(data), patch_image_size=64, random_towers=True, seed=1)
    return UnifiedSegmentationTask(UnifiedSegmentationConfig(**(places | options)), vocabulary or vocabulary_of())
