"""Giving the finished files of a split their names: how a data folder gets new rows.

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
from pathlib import Path
from typing import Optional, Protocol, Sequence

from ofaseg.atomic import atomic_write, remove_leftovers
from ofaseg.data.folder import BY_SPLIT, FOLDER_KEYS, list_splits, shard_name
from ofaseg.data.parquet import ParquetPart
from ofaseg.data.rows import ShardError, check_columns
from ofaseg.data.tsv import TsvPart, index_path
from ofaseg.vocabulary import ClassVocabulary

PARTS = {"tsv": TsvPart, "parquet": ParquetPart}
_LEFTOVER_SECONDS = 24 * 3600
_CURES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "write smaller files, or raise the limit (ulimit -f)",
    errno.EACCES: "choose a writable folder",
    errno.EPERM: "choose a writable folder",
    errno.EROFS: "choose a writable folder",
}


class FinishedFile(Protocol):
    """A file written under a temporary name in the file system of the data folder.

    Attributes:
        path: where it lies; the exchange renames it.
        digests: the `row_digest` of each of its rows, at least one.
    """

    path: Path
    digests: list[bytes]

    def renamed(self, path) -> None:
        """Called when the file has its final name."""


@contextlib.contextmanager
def disk_errors(root):
    """Turns an error of the disk while writing to `root` into a ShardError that says what to do."""
    try:
        yield
    except OSError as error:
        cure = _CURES.get(error.errno, "check the disk and the path")
        raise ShardError.at(error.filename or root, f"cannot write ({error.strerror or error}); {cure}") from error


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


class SplitExchange:
    """Exchanges the files of one split in folder `root`; creates the folder when missing.

    Args:
        root, split, vocabulary, columns, format: as `ShardWriter`.

    Raises:
        ShardError: an unusable argument, or a vocabulary.json there that describes other classes, columns or format.
    """

    def __init__(self, root, split: str, vocabulary: Optional[ClassVocabulary], columns, format: str):
        if format not in PARTS:
            raise ShardError(f"unknown shard format {format!r}; choose from {', '.join(PARTS)}")
        if not split or split.startswith(".") or any(c in split for c in "/\\\t\n"):
            raise ShardError(f"{split!r} cannot be the name of a split; use letters, digits and '_'")
        self.root = Path(root)
        self.split = split
        self.vocabulary = vocabulary
        self.columns = check_columns(columns)
        self.format = format
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        self._merged_description({})

    def commit(self, files: Sequence[FinishedFile]) -> None:
        """Gives the files their names, removes the split's old files and updates vocabulary.json.

        Raises:
            ShardError: the disk fails. Until the first file has its name the old rows stay readable.
        """
        with disk_errors(self.root), self._locked() as folder:
            self._exchange(files, folder)

    def _exchange(self, files: Sequence[FinishedFile], folder: int) -> None:
        """`folder` is the descriptor of the root, flushed so that a power cut keeps the order too."""
        names = [shard_name(self.split, k, len(files), self.format) for k in range(len(files))]
        old = [Path(path) for path in list_splits(self.root).get(self.split, [])]
        _remove_leftovers(self.root, self.split)
        remove_leftovers(self.root / "vocabulary.json")
        with self._mark_removed_unless_exchanged(folder, files[0].path):
            self._write_description({}, folder)
            for file, name in zip(files, names):
                os.replace(file.path, self.root / name)
                file.renamed(self.root / name)
        for path in old:
            if path.name not in names:
                path.unlink()
                index_path(path).unlink(missing_ok=True)
        _flush_folder(folder)
        self._write_description(self._entries([file.digests for file in files]), folder)

    def holds(self, digests: Sequence[list[bytes]]) -> bool:
        """Whether the folder already holds exactly these files, given the digests of their rows, all with their names."""
        path = self.root / "vocabulary.json"
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        entries = self._entries(digests)
        described = all(description.get(key, {}).get(self.split) == entries[key] for key in BY_SPLIT)
        present = all((self.root / file["name"]).is_file() for file in entries["files"])
        return described and present and self.split not in description.get("writing", ())

    @contextlib.contextmanager
    def _mark_removed_unless_exchanged(self, folder: int, first: Path):
        """Puts vocabulary.json back as it was when the block fails before the first file was exchanged: the old ones are intact."""
        path = self.root / "vocabulary.json"
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

    def _entries(self, digests: Sequence[list[bytes]]) -> dict:
        """What vocabulary.json says of this split, by key of `BY_SPLIT`, given the row digests of each file."""
        files = [
            {"name": shard_name(self.split, k, len(digests), self.format), "rows": len(rows), "content_hash": content_hash(rows)}
            for k, rows in enumerate(digests)
        ]
        every = [digest for rows in digests for digest in rows]
        return {"num_rows": len(every), "content_hash": content_hash(every), "files": files}

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
