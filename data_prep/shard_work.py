"""The unit of work of a conversion: one shard, written by any process or machine that sees the folders.

Shard k holds samples k * rows_per_shard ... of the source, whoever writes it, so that the files do not depend on the number
of workers. A shard counts as written once its record, a small JSON file beside it, is there.
"""

import contextlib
import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from data_prep.source import Source, SourceError
from data_prep.statistics import Statistics
from ofaseg.atomic import atomic_write
from ofaseg.data import codec
from ofaseg.data.exchange import disk_errors
from ofaseg.data.rows import ShardError, normalise_row
from ofaseg.data.shard_writer import ShardFile
from ofaseg.data.tsv import index_path
from ofaseg.vocabulary import ClassVocabulary, VocabularyError

PART_SUFFIX = ".part"


class BadSampleError(SourceError):
    """A sample that cannot become a row; the message names its file and says what to do."""


@dataclass(frozen=True)
class ShardPlan:
    """What a worker needs to write any shard of a split; picklable.

    Attributes:
        source: the samples.
        folder: where finished shards and their records lie until all are there.
        columns: the columns to write, in the order of `ofaseg.data.rows.COLUMNS`.
        format: "tsv" or "parquet".
        rows_per_shard: samples per shard, at least 1.
        skip_bad: leave bad samples out instead of raising.
    """

    source: Source
    folder: Path
    columns: tuple[str, ...]
    format: str
    rows_per_shard: int
    skip_bad: bool = False

    @property
    def num_shards(self) -> int:
        return -(-len(self.source) // self.rows_per_shard)

    def samples(self, number: int) -> range:
        """The samples of shard `number` from 0."""
        start = number * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, len(self.source)))

    def shard_path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.{self.format}"

    def record_path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"


def sample_to_row(sample: dict, vocabulary: Optional[ClassVocabulary]) -> tuple[dict, Optional[np.ndarray]]:
    """(row for a shard, its label map (H, W) or None). Bytes are kept, arrays are encoded; labels and photo are checked.

    Without a vocabulary label maps are kept unread.

    Raises:
        CodecError: a photo that readers could not decode, an array of the wrong shape, or a label that is neither a class nor
            "no label".
    """
    row, label_map = dict(sample), sample.get("label_map")
    if isinstance(row.get("image"), np.ndarray):
        row["image"] = codec.encode_image(row["image"])
    elif isinstance(row.get("image"), bytes):
        codec.decode_image(row["image"], "photo")
    if isinstance(row.get("segment_map"), np.ndarray):
        row["segment_map"] = codec.encode_segment_map(row["segment_map"])
    if vocabulary is None:
        return row, None
    if isinstance(label_map, np.ndarray):
        row["label_map"] = codec.encode_label_map(label_map, vocabulary)
    elif label_map is not None:
        label_map = codec.decode_label_map(label_map, vocabulary, "label map")
    return row, label_map


def read_row(plan: ShardPlan, i: int) -> tuple[dict, Optional[np.ndarray]]:
    """(checked row, label map) of sample `i`. Raises BadSampleError for whatever is wrong with it."""
    name = plan.source.name(i)
    try:
        row, label_map = sample_to_row(plan.source[i], plan.source.vocabulary)
        return normalise_row(row, plan.columns, name), label_map
    except codec.CodecError as error:
        raise BadSampleError(f"{name}: {error}") from error
    except OSError as error:
        reason = f"{error.filename or name}: cannot be read ({error.strerror}); check the file" if error.errno else str(error)
        raise BadSampleError(reason) from error
    except (SourceError, ShardError, VocabularyError) as error:
        raise BadSampleError(str(error)) from error


def files_state(plan: ShardPlan, number: int) -> str:
    """A hash of the sizes and times of the raw files behind shard `number`, to tell whether they changed since."""
    digest = hashlib.sha256()
    for i in plan.samples(number):
        for path in plan.source.files(i):
            digest.update(f"{path}\0".encode("utf-8", "surrogateescape"))
            with contextlib.suppress(OSError, ValueError):  # no file, but a place in one: told by its name alone
                status = os.stat(path)
                digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def write_shard(plan: ShardPlan, number: int, tick: Callable[[], None]) -> None:
    """Writes shard `number` and then its record; nothing of it is left after an exception.

    Args:
        tick: called before every sample; what it raises stops the shard.

    Raises:
        BadSampleError: a bad sample, unless `plan.skip_bad`.
        ShardError: the disk fails, or two samples have one id.
    """
    statistics = Statistics(len(plan.source.vocabulary or ()))
    skipped, first = [], {}
    state = files_state(plan, number)
    with disk_errors(plan.folder):
        file = ShardFile(plan.folder / f"{number:05d}-{uuid.uuid4().hex}{PART_SUFFIX}", plan.columns, plan.format)
        try:
            for i in plan.samples(number):
                tick()
                try:
                    row, label_map = read_row(plan, i)
                except BadSampleError as error:
                    if not plan.skip_bad:
                        raise
                    skipped.append({"sample": plan.source.name(i), "reason": str(error)})
                    continue
                if row["id"] in first:
                    raise repeated_id(row["id"], plan.source.name(first[row["id"]]), plan.source.name(i))
                first[row["id"]] = i
                file.append(row)
                statistics.add(codec.image_size(row["image"]), label_map)
            _finish(plan, number, file)
        except BaseException:
            file.abort()
            raise
        record = {
            "ids": file.ids,
            "samples": list(first.values()),
            "digests": [digest.hex() for digest in file.digests],
            "bytes": plan.shard_path(number).stat().st_size if file.ids else 0,
            "skipped": skipped,
            "statistics": statistics.to_json(),
            "files_state": state,
        }
        with atomic_write(plan.record_path(number), "w") as out:
            json.dump(record, out)


def _finish(plan: ShardPlan, number: int, file: ShardFile) -> None:
    """Gives a complete file its name; one without rows is removed, since readers refuse empty files."""
    path = plan.shard_path(number)
    index_path(path).unlink(missing_ok=True)
    if not file.ids:
        file.abort()
        path.unlink(missing_ok=True)
        return
    file.close()
    os.replace(file.path, path)
    file.renamed(path)


def repeated_id(name: str, first: str, second: str) -> ShardError:
    """The error of two samples with one id."""
    return ShardError.at(second, f"id {name!r} is also that of {first}; give every sample its own id", column="id")
