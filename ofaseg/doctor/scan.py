"""Looking at many samples with several processes: the same findings in the same order as with one."""

import functools
import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from tqdm import tqdm

from ofaseg.data.rows import ShardError, row_digest
from ofaseg.data.shards import ShardReader
from ofaseg.doctor.findings import Finding, from_error
from ofaseg.doctor.labels import LabelTally
from ofaseg.doctor.samples import SampleCheck
from ofaseg.vocabulary import ClassVocabulary

CHUNK = 32
"""Samples per piece of work."""


class Seen(NamedTuple):
    """What a sample is known by: its place, id ("" when unreadable), and the digests of image file and row (None when unreadable)."""

    file: str
    row: Optional[int]
    id: str
    image: Optional[bytes]
    digest: Optional[bytes]


@dataclass
class Piece:
    """The result of one piece of work."""

    samples: int = 0
    findings: list[Finding] = field(default_factory=list)
    tally: LabelTally = field(default_factory=LabelTally)
    without_map: list[tuple[str, Optional[int]]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def extend(self, other: "Piece") -> None:
        """Adds the piece that comes after this one."""
        self.samples += other.samples
        self.findings += other.findings
        self.tally.merge(other.tally)
        self.without_map += other.without_map
        self.seen += other.seen


class Rows(NamedTuple):
    """Rows start..stop-1 of a shard file; `stamp` tells versions of the file apart."""

    path: str
    start: int
    stop: int
    vocabulary: Optional[ClassVocabulary]
    stamp: tuple


def row_tasks(path: str, count: int, vocabulary: Optional[ClassVocabulary]) -> list[Rows]:
    """The pieces of work of one shard file of `count` rows."""
    status = os.stat(path)
    stamp = (status.st_mtime_ns, status.st_size)
    return [Rows(path, start, min(start + CHUNK, count), vocabulary, stamp) for start in range(0, count, CHUNK)]


@functools.lru_cache(maxsize=4)
def _reader(path: str, stamp: tuple) -> ShardReader:
    return ShardReader([path])


def scan_rows(task: Rows) -> Piece:
    """Reads, decodes and checks the rows of one task."""
    reader, check, piece = _reader(task.path, task.stamp), SampleCheck(task.vocabulary), Piece()
    for i in range(task.start, task.stop):
        row, whole = _read(reader, i, check.findings)
        check.check(row, lambda column: task.path, i)
        image = hashlib.blake2b(row["image"], digest_size=16).digest() if row.get("image") else None
        piece.seen.append(Seen(task.path, i, row.get("id", ""), image, _digest(row, task.path, i, check) if whole else None))
    piece.samples = task.stop - task.start
    piece.findings, piece.tally, piece.without_map = check.findings, check.tally, check.without_map
    return piece


def _read(reader: ShardReader, i: int, findings: list[Finding]) -> tuple[dict, bool]:
    """The columns of row `i` that can be read, and whether those are all; the others become findings."""
    try:
        return reader[i], True
    except ShardError as error:
        if not error.column:
            findings.append(from_error("bad_row", error))
            return {}, False
    row = {}
    for name in reader.columns:
        try:
            row |= reader.read(i, (name,))
        except ShardError as error:
            findings.append(from_error("bad_field", error))
    return row, False


def _digest(row: dict, path: str, i: int, check: SampleCheck) -> Optional[bytes]:
    try:
        return row_digest(row)
    except ValueError as error:  # an infinite or undefined number, which the checks of boxes name better when it is one
        if not any(item.row == i and item.code == "bad_box" for item in check.findings):
            check.findings.append(from_error("bad_field", error, path, i))
        return None


def run(function: Callable, tasks: list, workers: int, bar: tqdm) -> Iterator[Piece]:
    """The results of `function` on each task, in order; `bar` counts samples.

    Raises whatever `function` raises.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from _counted(map(function, tasks), bar)
        return
    with multiprocessing.get_context("fork").Pool(min(workers, len(tasks))) as pool:
        yield from _counted(pool.imap(function, tasks), bar)


def _counted(pieces: Iterable[Piece], bar: tqdm) -> Iterator[Piece]:
    for piece in pieces:
        bar.update(piece.samples)
        yield piece
