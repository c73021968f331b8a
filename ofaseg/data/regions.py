"""Regions with a class in labelled photos, per task: where they are, and a fair sample of them (FreeSeg, section 3.4).

A region is all pixels of a class (semantic), an object (instance), or a segment (panoptic). Crowds are no regions.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from tqdm import tqdm

from ofaseg.data.codec import CodecError
from ofaseg.data.kept_arrays import DAMAGE, keep, kept, kept_path, shards_key
from ofaseg.data.mask_target_dataset import INSTANCE, PANOPTIC, SEMANTIC
from ofaseg.data.present_classes import present_classes
from ofaseg.data.segments import check_segment_columns, has_class
from ofaseg.data.shards import ShardError, ShardReader
from ofaseg.vocabulary import ClassVocabulary

logger = logging.getLogger(__name__)

TASKS = (SEMANTIC, INSTANCE, PANOPTIC)
_VERSION = 1
_QUIET_SECONDS = 1.0


@dataclass(frozen=True)
class Regions:
    """N regions.

    Attributes:
        tasks: (N,) places in `TASKS`.
        rows: (N,) rows of the shards.
        values: (N,) what the pixels hold: the class id in the label map (semantic), or the id in the segment map.
        classes: (N,) class ids.
    """

    tasks: np.ndarray
    rows: np.ndarray
    values: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: np.ndarray) -> "Regions":
        """The regions of these places, in this order."""
        return Regions(self.tasks[chosen], self.rows[chosen], self.values[chosen], self.classes[chosen])


def find_regions(reader: ShardReader, vocabulary: ClassVocabulary, tasks: Sequence[str]) -> Regions:
    """The regions of all rows for some of `TASKS`, ordered by task, class, row and value.

    Label maps and lists of segments are searched once, and what they hold is kept beside the shards. Rows that cannot be read are
    logged and left out.

    Raises:
        ShardError: a column that a task needs is missing, or no row can be read, or there is no region at all.
    """
    parts = []
    if SEMANTIC in tasks:
        present = present_classes(reader, vocabulary)
        classes = present.classes.astype(np.int64)
        parts.append(Regions(np.full(len(classes), TASKS.index(SEMANTIC)), present.rows(), classes, classes))
    if {INSTANCE, PANOPTIC} & set(tasks):
        segments = listed_segments(reader, vocabulary)
        thing = np.asarray(vocabulary.thing or (False,) * len(vocabulary), dtype=bool)
        for task in (INSTANCE, PANOPTIC):
            chosen = thing[segments.classes] if task == INSTANCE else np.ones(len(segments), dtype=bool)
            if task in tasks:
                found = segments[np.flatnonzero(chosen)]
                parts.append(Regions(np.full(len(found), TASKS.index(task)), found.rows, found.values, found.classes))
    regions = Regions(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("tasks", "rows", "values", "classes")))
    if not len(regions):
        raise ShardError(f"{reader.paths[0]}: no regions for {', '.join(tasks)}; its rows have no labels")
    return regions[np.lexsort((regions.values, regions.rows, regions.classes, regions.tasks))]


def sample_regions(regions: Regions, per_class: int, seed: int, classes: Optional[Sequence[int]] = None) -> Regions:
    """Up to `per_class` regions of each task and class (0: all), without replacement, in the order of `regions`.

    The same seed gives the same regions; those of one task and class do not depend on what else is drawn. `classes`: only these.
    """
    kinds = regions.tasks * (int(regions.classes.max(initial=0)) + 1) + regions.classes
    chosen = []
    for kind in np.unique(kinds):
        places = np.flatnonzero(kinds == kind)
        class_id, task = int(regions.classes[places[0]]), int(regions.tasks[places[0]])
        if classes is not None and class_id not in classes:
            continue
        if 0 < per_class < len(places):
            places = np.sort(np.random.default_rng((seed, task, class_id)).choice(places, per_class, replace=False))
        chosen.append(places)
    return regions[np.concatenate(chosen)] if chosen else regions[np.zeros(0, dtype=np.int64)]


def listed_segments(reader: ShardReader, vocabulary: ClassVocabulary) -> Regions:
    """The segments with a class that are no crowds of all rows, from the file beside the shards when that matches; tasks are -1.

    Raises:
        ShardError: the shards have no segments, or no row of them can be read.
    """
    check_segment_columns(reader)
    path, key = kept_path(reader, "segments"), shards_key(reader, vocabulary, _VERSION)
    table = _stored(path, key)
    if table is None:
        table = _search(reader, vocabulary, path.name)
        keep(path, key, {"table": table}, {}, "the segments of all rows are searched")
    rows, values, classes = table
    return Regions(np.full(len(rows), -1), rows, values, classes)


def _stored(path: Path, key: str) -> Optional[np.ndarray]:
    try:
        archive = kept(path, key)
        if archive is not None and (archive["table"].ndim != 2 or len(archive["table"]) != 3):
            raise ValueError("no table of three columns")
    except DAMAGE as error:
        logger.warning("%s is damaged (%s); making it again", path, error)
        return None
    return None if archive is None else archive["table"]


def _search(reader: ShardReader, vocabulary: ClassVocabulary, name: str) -> np.ndarray:
    """(3, N) int64: row, segment id and class id of each segment."""
    found, problems = [], []
    for row in tqdm(range(len(reader)), desc=f"making {name}", unit="row", delay=_QUIET_SECONDS, leave=False):
        try:
            entries = reader.read(row, ("segments",))["segments"] or []
            where = reader.location(row, "segments")
            kept_entries = [entry for entry in entries if has_class(entry, "segment", vocabulary, where) and not entry["is_crowd"]]
            found += [(row, entry["id"], entry["class_id"]) for entry in kept_entries]
        except (ShardError, CodecError) as error:
            problems.append(str(error))
    if problems:
        if len(problems) == len(reader):
            raise ShardError(f"no segments of {len(reader)} rows can be read, the first: {problems[0]}")
        count = len(problems)
        logger.warning("%d of %d rows are left out, for their segments cannot be read; the first: %s", count, len(reader), problems[0])
    return np.asarray(found, dtype=np.int64).reshape(-1, 3).T
