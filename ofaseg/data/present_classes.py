"""Which classes the label map of each row shows: found in one pass over a split, and kept beside its shards.

The result is `<split>.classes.npz`, an archive of plain arrays that names sizes, times and sampled contents of the shards it was
made from, and how their labels are stored. One that does not match is made again; where it cannot be stored (a folder
that cannot be written) it stays in memory.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ofaseg.data import codec
from ofaseg.data.kept_arrays import DAMAGE, keep, kept, kept_path, shards_key
from ofaseg.data.rows import ShardError
from ofaseg.data.shards import ShardReader
from ofaseg.vocabulary import ClassVocabulary

logger = logging.getLogger(__name__)

_VERSION = 1
_QUIET_SECONDS = 1.0


@dataclass(frozen=True)
class PresentClasses:
    """The classes in each of N rows.

    Attributes:
        ids: N row ids.
        starts: (N + 1,) int64; the classes of row i are `classes[starts[i] : starts[i + 1]]`.
        classes: class ids, ascending in each row.
        unreadable: row number -> why its label map could not be read; such a row shows no class here.
    """

    ids: list[str]
    starts: np.ndarray
    classes: np.ndarray
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def of_row(self, row: int) -> np.ndarray:
        """Class ids of one row, ascending."""
        return self.classes[self.starts[row] : self.starts[row + 1]]

    def rows(self) -> np.ndarray:
        """The row number of each entry of `classes`."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))


def cache_path(reader: ShardReader) -> Path:
    """Where the classes of a reader's rows are kept: `<split>.classes.npz` beside its first file."""
    return kept_path(reader, "classes")


def present_classes(reader: ShardReader, vocabulary: ClassVocabulary) -> PresentClasses:
    """The classes of every row, from the file beside the shards when that matches, else from one pass under a progress bar.

    Rows whose label map cannot be read are logged and listed; they never cost the others.

    Raises:
        ShardError: the shards have no label maps, or not one of them can be read.
    """
    if "label_map" not in reader.columns:
        raise ShardError.at(reader.paths[0], "no such column, but pairs of photo and class need it; write label maps", column="label_map")
    path, key = cache_path(reader), shards_key(reader, vocabulary, _VERSION)
    found = _stored(path, key, len(reader))
    if found is None:
        found = _search(reader, vocabulary, path.name)
        arrays, texts = dict(starts=found.starts, classes=found.classes), dict(ids="\n".join(found.ids))
        texts["unreadable"] = json.dumps(list(found.unreadable.items()))
        keep(path, key, arrays, texts, "the classes of all rows are searched")
    if found.unreadable:
        first = next(iter(found.unreadable.values()))
        if len(found.unreadable) == len(found):
            raise ShardError(f"no label map of {len(found)} rows can be read, the first: {first}")
        count = len(found.unreadable)
        logger.warning("%d of %d rows are left out, for their label maps cannot be read; the first: %s", count, len(found), first)
    return found


def _search(reader: ShardReader, vocabulary: ClassVocabulary, name: str) -> PresentClasses:
    ids, counts, classes, unreadable = [], [0], [], {}
    for row in tqdm(range(len(reader)), desc=f"making {name}", unit="row", delay=_QUIET_SECONDS, leave=False):
        shown = np.zeros(0, np.int32)
        try:
            values = reader.read(row, ("id", "label_map"))
            ids.append(values["id"])
            shown = _shown(values["label_map"], vocabulary, reader.location(row, "label_map"))
        except (ShardError, codec.CodecError) as error:
            unreadable[row] = str(error)
            ids += [""] * (row + 1 - len(ids))  # a row without id is found by no list
        classes.append(shown)
        counts.append(len(shown))
    return PresentClasses(ids, np.cumsum(counts, dtype=np.int64), np.concatenate(classes or [np.zeros(0, np.int32)]), unreadable)


def _shown(label_map, vocabulary: ClassVocabulary, where: str) -> np.ndarray:
    """Class ids in the label map of a row, ascending int32. Raises CodecError for none or a damaged one."""
    if not label_map:
        raise codec.CodecError(f"{where}: the row has no label map; leave it out of the shards")
    labels = codec.decode_label_map(label_map, vocabulary, where)
    return np.flatnonzero(np.bincount(labels.ravel() + 1)[1:]).astype(np.int32)  # without `IGNORE_INDEX`, -1


def _stored(path: Path, key: str, num_rows: int):
    """The stored result; None when there is none, it is damaged, or it belongs to other shards."""
    try:
        archive = kept(path, key)
        if archive is None:
            return None
        ids = archive["ids"].tobytes().decode().split("\n") if num_rows else []
        starts, classes = archive["starts"], archive["classes"]
        unreadable = {int(row): str(text) for row, text in json.loads(archive["unreadable"].tobytes())}
        if len(ids) != num_rows or starts.shape != (num_rows + 1,) or int(starts[-1]) != len(classes):
            raise ValueError("its lengths do not fit")
    except DAMAGE as error:
        logger.warning("%s is damaged (%s); making it again", path, error)
        return None
    return PresentClasses(ids, starts, classes, unreadable)
