"""The hidden folder of a split that is being written: its plan, the finished shards and their records.

It stays when a run is killed, so that `--resume` goes on from there, and is removed when the split is complete:

    OUT/.train.unfinished/plan.json                   what is written; another plan cannot go on here
                          00000.tsv, 00000.tsv.idx    a finished shard
                          00000.json                  its record (`shard_work.write_shard`), written last
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Optional

from data_prep.shard_work import ShardPlan, files_state
from data_prep.statistics import Statistics
from ofaseg.atomic import atomic_write
from ofaseg.data.exchange import disk_errors
from ofaseg.data.rows import ShardError
from ofaseg.data.tsv import index_path

logger = logging.getLogger(__name__)

_VERSION = 1
PLAN_FILE = "plan.json"


def folder_of(out, split: str) -> Path:
    """The working folder of a split in data folder `out`."""
    return Path(out) / f".{split}.unfinished"


def describe_plan(plan: ShardPlan, options: dict) -> dict:
    """A JSON-ready description of what `plan` writes: equal descriptions write equal files.

    Args:
        options: the options of the command that change the rows.
    """
    listing = hashlib.sha256()
    for i in range(len(plan.source)):
        listing.update(f"{plan.source.name(i)}\n".encode("utf-8", "surrogateescape"))
    vocabulary = plan.source.vocabulary
    description = {
        "version": _VERSION,
        "format": plan.format,
        "columns": list(plan.columns),
        "rows_per_shard": plan.rows_per_shard,
        "skip_bad": plan.skip_bad,
        "samples": len(plan.source),
        "listing": listing.hexdigest(),
        "vocabulary": vocabulary.to_json() if vocabulary is not None else None,
        "options": options,
    }
    return json.loads(json.dumps(description, default=str))  # as it is read back


def combined_state(states: list[str]) -> str:
    """One hash from the `shard_work.files_state` of all shards."""
    return hashlib.sha256("".join(states).encode()).hexdigest()


class FinishedShard:
    """A shard with what its record says, ready for `ofaseg.data.exchange`.

    Attributes:
        path: its file; there is none when it has no row.
        ids, samples, digests: of each row, its id, its number in the source and its `row_digest`.
        skipped: {"sample", "reason"} of each sample left out.
        statistics: the counts over its rows.
        bytes: size of the file.
        files_state: `shard_work.files_state` when it was written.
    """

    def __init__(self, path: Path, record: dict):
        self.path = path
        self.ids: list[str] = record["ids"]
        self.samples: list[int] = record["samples"]
        self.digests = [bytes.fromhex(digest) for digest in record["digests"]]
        self.skipped: list[dict] = record["skipped"]
        self.statistics = Statistics.from_json(record["statistics"])
        self.bytes: int = record["bytes"]
        self.files_state: str = record["files_state"]

    def renamed(self, path) -> None:
        """Takes along the index of a TSV file."""
        if index_path(self.path).exists():
            os.replace(index_path(self.path), index_path(path))


class WorkingFolder:
    """Context manager that holds the working folder of a split; one process at a time.

    Args:
        plan: what is written; `plan.folder` is the folder.
        description: `describe_plan` of it.
        resume: go on with the finished shards there; otherwise they are removed.

    Raises:
        ShardError: another process is at it, or its shards are of another plan.
    """

    def __init__(self, plan: ShardPlan, description: dict, resume: bool):
        self.plan = plan
        self.description = description
        self.resume = resume
        self._handle = -1

    @property
    def path(self) -> Path:
        return self.plan.folder

    def __enter__(self) -> "WorkingFolder":
        with disk_errors(self.path):
            self.path.mkdir(exist_ok=True)
            self._handle = os.open(self.path, os.O_RDONLY)
            try:
                self._lock()
                self._prepare()
            except BaseException:
                with contextlib.suppress(OSError):
                    self.path.rmdir()  # only when nothing is in it
                os.close(self._handle)
                raise
        return self

    def __exit__(self, *_) -> None:
        """Leaves what is finished and says so; a folder without a finished shard goes."""
        try:
            if not self.path.is_dir():
                return
            count = len(self._recorded())
            if count:
                logger.warning("%s: %d of %d shards are finished; --resume goes on from there", self.path, count, self.plan.num_shards)
            else:
                with disk_errors(self.path):
                    self.remove()
        finally:
            os.close(self._handle)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError.at(self.path, "another process is writing this split; wait for it, or end it") from error

    def _prepare(self) -> None:
        """Checks or replaces what is there, and removes files of killed workers."""
        there = self._stored_description()
        if self.resume and there is not None and there != self.description:
            cure = "give the same source and options, or leave out --resume to start again"
            raise ShardError.at(self.path, f"the unfinished run there is another one ({_differences(there, self.description)}); {cure}")
        if not self.resume and there is not None:
            count = len(list(self.path.glob("[0-9]*.json")))
            logger.warning("%s: an unfinished run (%d finished shards) is replaced; --resume would go on with it", self.path, count)
        keep = {PLAN_FILE}
        if there == self.description and self.resume:
            for number in self._recorded():
                if self._is_readable(number):
                    keep |= {path.name for path in self._files_of(number)}
        for path in self.path.iterdir():
            if path.name not in keep:
                path.unlink()
        if there != self.description:
            with atomic_write(self.path / PLAN_FILE, "w") as file:
                json.dump(self.description, file)

    def _stored_description(self) -> Optional[dict]:
        try:
            return json.loads((self.path / PLAN_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            if not self.resume:
                return {}
            cure = "leave out --resume to write the split from its start"
            raise ShardError.at(self.path / PLAN_FILE, f"damaged ({error}); {cure}") from error

    def _files_of(self, number: int) -> tuple[Path, Path, Path]:
        shard = self.plan.shard_path(number)
        return shard, index_path(shard), self.plan.record_path(number)

    def _recorded(self) -> list[int]:
        """The shards whose record is there."""
        return [number for number in range(self.plan.num_shards) if self.plan.record_path(number).exists()]

    def pending(self) -> list[int]:
        """The shards still to be written: without record, without their file, or whose raw files changed since."""
        result = []
        for number in range(self.plan.num_shards):
            if self.plan.record_path(number).exists() and self._is_whole(number):
                continue
            self.plan.record_path(number).unlink(missing_ok=True)
            result.append(number)
        return result

    def _is_whole(self, number: int) -> bool:
        shard = self.shard(number)
        if shard.files_state != files_state(self.plan, number):
            logger.warning("shard %d: its raw files have changed since it was written; writing it again", number)
            return False
        return not shard.bytes or (shard.path.is_file() and shard.path.stat().st_size == shard.bytes)

    def _is_readable(self, number: int) -> bool:
        try:
            self.shard(number)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s: damaged (%s); writing the shard again", self.plan.record_path(number), error)
            return False
        return True

    def shard(self, number: int) -> FinishedShard:
        """A shard that has its record; whether its file is still here is not looked at."""
        record = json.loads(self.plan.record_path(number).read_text(encoding="utf-8"))
        return FinishedShard(self.plan.shard_path(number), record)

    def finished(self) -> Optional[list[FinishedShard]]:
        """All shards in order when every one has its record, else None."""
        complete = len(self._recorded()) == self.plan.num_shards
        return [self.shard(number) for number in range(self.plan.num_shards)] if complete else None

    def remove(self) -> None:
        """Removes the folder, the plan first: what a kill leaves then is no unfinished run."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / PLAN_FILE).unlink()
        shutil.rmtree(self.path)


def _differences(there: dict, here: dict) -> str:
    """What differs between two descriptions, for people."""
    hidden = {"listing": "the names of its samples differ", "vocabulary": "its classes differ", "options": "its options differ"}
    changed = [key for key in here if there.get(key) != here[key]]
    return ", ".join(hidden.get(key, f"{key} {there.get(key)!r} there, {here[key]!r} now") for key in changed)
