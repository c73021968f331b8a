"""Writing shards: many rows, several files, one vocabulary.json.

Files are written under temporary names and exchanged at the end. As several renames are not one step, vocabulary.json says
"writing": [split] before the first and is completed after the last: whenever the process is killed, readers find the old
rows, or the new ones, or are told to write the split again.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from ofaseg.atomic import atomic_write
from ofaseg.data.folder import BY_SPLIT, FOLDER_KEYS, list_splits, shard_name
from ofaseg.data.parquet import ParquetPart
from ofaseg.data.rows import ShardError, check_columns, normalise_row, row_digest
from ofaseg.data.tsv import TsvPart, index_path
from ofaseg.vocabulary import ClassVocabulary

PARTS = {"tsv": TsvPart, "parquet": ParquetPart}
_LEFTOVER_SECONDS = 24 * 3600


@dataclass
class _File:
    """A file being written, and the digests of its rows."""

    part: TsvPart | ParquetPart
    digests: list[bytes] = field(default_factory=list)


def content_hash(digests: list[bytes]) -> str:
    """The hash of rows in order, from their `row_digest`s."""
    return "sha256:" + hashlib.sha256(b"".join(digests)).hexdigest()


def _flush_folder(folder: int) -> None:
    """Flushes a folder's entries to disk, so that a power cut keeps the order of renames."""
    try:
        os.fsync(folder)
    except OSError as error:
        # FUSE, SMB and others cannot flush a folder and say so by one of these; the renames themselves are done
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def _remove_leftovers(root: Path, split: str) -> None:
    """Removes the temporary files that killed writers of `split` left in `root`.

    A process that is not found may still run on another machine or in another container that shares the folder. A writer
    writes to its newest file all the time, so its files go only when that one has been untouched for a day as well.
    """
    pattern = re.compile(rf"\.{re.escape(split)}-\d{{5,}}\.((\d+)-[0-9a-f]+)\.tmp")
    files: dict[tuple[str, int], list[Path]] = {}
    for path in root.iterdir():
        if match := pattern.fullmatch(path.name):
            files.setdefault((match[1], int(match[2])), []).append(path)
    for (_, pid), paths in files.items():
        with contextlib.suppress(OSError):  # of another user, or removed meanwhile: no reason not to write
            if time.time() - max(path.stat().st_mtime for path in paths) > _LEFTOVER_SECONDS and not _is_running(pid):
                for path in paths:
                    path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process; no number of a process, so not a name of ours
        return True
    return True


class ShardWriter:
    """Context manager writing the rows of one split to `<split>-00000-of-00004.<format>` files in folder `root`.

    Files have temporary names until the end of the block; then they replace the split's old files and vocabulary.json is
    updated. After an exception inside the block nothing of the new rows is left, and the old files are untouched. Should the
    exchange itself fail half-way, readers refuse the split until it is written again; other splits stay usable.

    Args:
        root: the data folder, created when missing.
        split: name of the split, such as "train".
        vocabulary: the classes of the label maps; None for shards without labels.
        columns: columns to write, any order; `rows.COLUMNS` says which exist. Image and id are required.
        format: "tsv" or "parquet".
        rows_per_shard: a new file begins after this many rows.

    Raises:
        ShardError: an unusable argument, or a vocabulary.json there that describes other classes, columns or format.
    """

    def __init__(self, root, split: str, vocabulary: Optional[ClassVocabulary], columns, format: str = "tsv", rows_per_shard: int = 5000):
        if format not in PARTS:
            raise ShardError(f"unknown shard format {format!r}; choose from {', '.join(PARTS)}")
        if not split or split.startswith(".") or any(c in split for c in "/\\\t\n"):
            raise ShardError(f"{split!r} cannot be the name of a split; use letters, digits and '_'")
        if rows_per_shard < 1:
            raise ShardError(f"rows_per_shard is {rows_per_shard}; it must be at least 1")
        self.root = Path(root)
        self.split = split
        self.vocabulary = vocabulary
        self.columns = check_columns(columns)
        self.format = format
        self.rows_per_shard = rows_per_shard
        self.num_rows = 0
        self._ids: set[str] = set()
        self._files: list[_File] = []
        with self._io_errors():
            self.root.mkdir(parents=True, exist_ok=True)
        self._merged_description({})

    @contextlib.contextmanager
    def _io_errors(self):
        """Turns an error of the disk into a ShardError that says what to do."""
        try:
            yield
        except OSError as error:
            cures = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EACCES: "choose a writable folder"}
            cure = cures.get(error.errno, "check the disk and the path")
            raise ShardError.at(error.filename or self.root, f"cannot write ({error.strerror or error}); {cure}") from error

    def write(self, row: dict) -> None:
        """Appends a row.

        Raises:
            ShardError: a value of the wrong type, a repeated id, image and map of different size, or the disk fails.
        """
        row = normalise_row(row, self.columns, self.root / self.split, self.num_rows)
        if row["id"] in self._ids:
            problem = f"id {row['id']!r} was written before in this split; give every sample its own id"
            raise ShardError.at(self.root / self.split, problem, self.num_rows, "id")
        with self._io_errors():
            if self.num_rows % self.rows_per_shard == 0:
                self._next_file()
            self._files[-1].part.write(row)
        self._ids.add(row["id"])
        self._files[-1].digests.append(row_digest(row))
        self.num_rows += 1

    def _next_file(self) -> None:
        if self._files:
            self._files[-1].part.close()
        path = self.root / f".{self.split}-{len(self._files):05d}.{os.getpid()}-{id(self):x}.tmp"
        self._files.append(_File(PARTS[self.format](path, self.columns)))

    def close(self) -> None:
        """Gives the files their names, removes the split's old files and updates vocabulary.json.

        Raises:
            ShardError: no row was written, or the disk fails.
        """
        if not self.num_rows:
            self.abort()
            raise ShardError.at(self.root, f"no row was written for split {self.split!r}; check that the source has samples")
        try:
            with self._io_errors():
                self._files[-1].part.close()
                with self._locked() as folder:
                    self._commit(folder)
        except BaseException:
            self.abort()
            raise
        self._files = []

    def _commit(self, folder: int) -> None:
        """Exchanges the files; `folder` is the descriptor of the root, flushed so that a power cut keeps the order too."""
        names = [shard_name(self.split, k, len(self._files), self.format) for k in range(len(self._files))]
        old = [Path(path) for path in list_splits(self.root).get(self.split, [])]
        _remove_leftovers(self.root, self.split)
        with self._mark_removed_unless_exchanged(folder):
            self._write_description({}, folder)
            for file, name in zip(self._files, names):
                os.replace(file.part.path, self.root / name)
                file.part.renamed(self.root / name)
        for path in old:
            if path.name not in names:
                path.unlink()
                index_path(path).unlink(missing_ok=True)
        _flush_folder(folder)
        self._write_description(self._entries(names), folder)

    @contextlib.contextmanager
    def _mark_removed_unless_exchanged(self, folder: int):
        """Puts vocabulary.json back as it was when the block fails before the first file was exchanged: the old ones are intact."""
        path, first = self.root / "vocabulary.json", self._files[0].part.path
        before = path.read_bytes() if path.exists() else None
        try:
            yield
        except BaseException:
            # whether the first file is still there, not a flag: Ctrl-C may come between the rename and setting one
            if os.path.exists(first):
                with contextlib.suppress(OSError):  # the mark stays then, and readers ask for another write
                    if before is None:
                        path.unlink(missing_ok=True)
                    else:
                        with atomic_write(path) as file:
                            file.write(before)
                    _flush_folder(folder)
            raise

    def _entries(self, names: list[str]) -> dict:
        """What vocabulary.json says of this split, by key of `BY_SPLIT`."""
        files = [
            {"name": name, "rows": len(file.digests), "content_hash": content_hash(file.digests)}
            for name, file in zip(names, self._files)
        ]
        digests = [digest for file in self._files for digest in file.digests]
        return {"num_rows": self.num_rows, "content_hash": content_hash(digests), "files": files}

    def _write_description(self, entries: dict, folder: int) -> None:
        description = self._merged_description(entries)
        with atomic_write(self.root / "vocabulary.json", "w") as file:
            json.dump(description, file, indent=1, ensure_ascii=False)
        _flush_folder(folder)

    def _merged_description(self, entries: dict) -> dict:
        """vocabulary.json with this split's `entries`; without any, the split is marked as being written.

        Raises ShardError when the other splits there do not fit it.
        """
        path = self.root / "vocabulary.json"
        classes = self.vocabulary.to_json() if self.vocabulary is not None else {}
        new = {key: value for key, value in classes.items() if key not in FOLDER_KEYS}
        new |= {"columns": list(self.columns), "format": self.format}
        by_split: dict[str, dict] = {key: {} for key in BY_SPLIT}
        writing: set[str] = set()
        if path.exists():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
                by_split = {key: dict(old.get(key, {})) for key in BY_SPLIT}
                writing = set(old.get("writing", ()))
            except (ValueError, AttributeError, TypeError) as error:
                raise ShardError.at(path, f"not the description of a data folder ({error}); remove it or choose another folder") from error
            others = [name for name in by_split["num_rows"] if name != self.split]
            for key in ("names", "label_offset", "ignore_index", "columns", "format"):
                if others and old.get(key) != new.get(key):
                    problem = f"{key} of the splits there ({', '.join(others)}) is {old.get(key)!r:.80}, now {new.get(key)!r:.80}"
                    raise ShardError.at(path, f"{problem}; choose another folder, or remove this one first")
        for key, values in by_split.items():
            values.pop(self.split, None)
            if entries:
                values[self.split] = entries[key]
        writing = writing - {self.split} if entries else writing | {self.split}
        return new | by_split | ({"writing": sorted(writing)} if writing else {})

    @contextlib.contextmanager
    def _locked(self):
        """One writer at a time commits in this folder; yields a descriptor of it."""
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(folder)

    def abort(self) -> None:
        """Removes everything written so far; the split's old files stay."""
        if self._files:
            self._files[-1].part.abort()
        for file in self._files:
            file.part.path.unlink(missing_ok=True)
        self._files = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, exception_type, *_) -> None:
        if exception_type is None:
            self.close()
        else:
            self.abort()

