"""Segments and objects of a row, decoded and checked: what scores of panoptic and instance segmentation compare with."""

from typing import Callable, Optional

import numpy as np

from ofaseg.data import codec
from ofaseg.data.rows import ShardError
from ofaseg.utils.run_lengths import RunLengthError, mask_of_text, runs_of_text
from ofaseg.vocabulary import ClassVocabulary

SOURCES = ("segment_map", "segments")
"""Columns that objects and segments come from."""
OBJECTS = ("instances",)
"""The column that objects alone come from."""
_SHOWN = 5


def check_segment_columns(reader) -> None:
    """Raises ShardError when the shards of a reader carry no segments, which the tasks instance and panoptic need."""
    absent = [column for column in SOURCES if column not in reader.columns]
    if absent:
        raise ShardError(
            f"{reader.paths[0]}: no column {' and no column '.join(absent)}, which the tasks instance and panoptic need; convert the "
            "data set with its segments, or train with --tasks semantic"
        )


def decode_segments(
    row: dict, vocabulary: ClassVocabulary, size: tuple[int, int], where: Callable[..., str]
) -> tuple[np.ndarray, list[dict]]:
    """(H, W) int32 segment ids and the entries of the column `segments` of a row; segments without a class become 0, no segment.

    Args:
        row: with segment_map and segments.
        vocabulary: its classes are those of the entries.
        size: (H, W) of the photo.
        where: column -> the place in messages.

    Raises:
        CodecError: a map that is missing, damaged or of another size, ids of map and list that differ, or a class that is none.
    """
    segments = row.get("segments") or []
    if not row.get("segment_map"):
        raise codec.CodecError(
            f"{where('segment_map')}: the row has no segment map; leave it out of the shards, or write it with its segments"
        )
    segment_map = codec.decode_segment_map(row["segment_map"], where("segment_map"))
    if segment_map.shape != tuple(size):
        found = f"{segment_map.shape[0]}x{segment_map.shape[1]} (height x width), the image {size[0]}x{size[1]}"
        raise codec.CodecError(f"{where('segment_map')}: the segment map is {found}; write it at the size of the image")
    listed, drawn = [entry["id"] for entry in segments], set(np.unique(segment_map).tolist()) - {0}
    if len(set(listed)) != len(listed) or set(listed) != drawn:
        differences = (
            f"drawn only: {sorted(drawn - set(listed))[:_SHOWN]}, listed only or twice: {sorted(_surplus(listed, drawn))[:_SHOWN]}"
        )
        cure = "write the segment map and the list from the same source"
        raise codec.CodecError(f"{where('segments')}: segment ids of map and list differ ({differences}); {cure}")
    unclassified = [entry["id"] for entry in segments if not has_class(entry, "segment", vocabulary, where("segments"))]
    if unclassified:
        segment_map[np.isin(segment_map, unclassified)] = 0
    return segment_map, [entry for entry in segments if entry["class_id"] is not None]


def _surplus(listed: list[int], drawn: set[int]) -> set[int]:
    return {i for i in listed if i not in drawn or listed.count(i) > 1}


def checked_instances(row: dict, vocabulary: ClassVocabulary, size: tuple[int, int], where: Callable[..., str]) -> list[dict]:
    """The entries of the column `instances` of a row that have a class; arguments as `decode_segments`.

    Raises:
        CodecError: a mask of another size or that cannot be read, or a class that is none.
    """
    entries = row.get("instances") or []
    for k, entry in enumerate(entries):
        try:
            pixels = int(runs_of_text(entry["mask"]).sum())
        except RunLengthError as error:
            raise codec.CodecError(f"{where('instances')}: mask {k}: {error}") from error
        if pixels != size[0] * size[1]:
            problem = f"mask {k} has {pixels} pixels, the image {size[0]}x{size[1]}"
            raise codec.CodecError(f"{where('instances')}: {problem}; draw it at the size of the image")
    return [entry for entry in entries if has_class(entry, "object", vocabulary, where("instances"))]


def drawn_instances(
    row: dict, vocabulary: ClassVocabulary, size: tuple[int, int], where: Callable[..., str]
) -> tuple[np.ndarray, list[dict]]:
    """The objects of a row as `decode_segments` gives segments: where they overlap, the smaller one is seen; what is hidden is left out.

    Arguments and errors as `checked_instances`. Ids are 1, 2, ... in the order of the column.
    """
    segment_map = np.zeros(size, dtype=np.int32)
    entries = [entry | {"id": k} for k, entry in enumerate(checked_instances(row, vocabulary, size, where), start=1)]
    masks = {entry["id"]: mask_of_text(entry["mask"], *size) for entry in entries}
    for number in sorted(masks, key=lambda number: -np.count_nonzero(masks[number])):
        segment_map[masks[number]] = number
    shown = set(np.unique(segment_map).tolist())
    return segment_map, [entry for entry in entries if entry["id"] in shown]


def has_class(entry: dict, kind: str, vocabulary: ClassVocabulary, where: str) -> bool:
    """Whether a segment or object has a class. Raises CodecError for a number that is none."""
    class_id: Optional[int] = entry["class_id"]
    if class_id is not None and not 0 <= class_id < len(vocabulary):
        problem = f"{kind} {entry['id']} has class_id {class_id}, classes are 0..{len(vocabulary) - 1}"
        raise codec.CodecError(f"{where}: {problem}; map the class ids again")
    return class_id is not None
