"""Atomic writing: a reader sees the old file or the whole new one, never a part; and so for new folders."""

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator


@contextlib.contextmanager
def atomic_write(path, mode: str = "wb", encoding: str | None = None):
    """Context manager yielding a file that replaces `path` when the block ends without an exception.

    The temporary file lies in the same folder, is flushed to disk before the rename, and is removed on an exception.
    Text modes default to UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if "b" not in mode and encoding is None:
        encoding = "utf-8"
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        with open(temporary, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def atomic_folder(path) -> Iterator[Path]:
    """Context manager yielding a new folder that gets its name `path` when the block ends without an exception.

    `path` must not exist, or be an empty folder. The temporary folder lies beside it; all in it is flushed to disk before the
    rename, and it is removed on an exception. Those of killed writers of `path` are removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftover_folders(path)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
        folder.chmod(0o777 & ~_umask())
        _flush_tree(folder)
        os.replace(folder, path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _remove_leftover_folders(path: Path) -> None:
    """Removes the temporary folders of `path` whose writer is gone; a living one holds its lock."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.tmp"):  # mkdtemp chooses eight characters
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue  # another process removed it, or it is a file of `atomic_write`
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _flush_tree(folder: Path) -> None:
    """Flushes every file and folder in `folder`, and itself, to disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _flush(Path(parent) / name)
        _flush(Path(parent))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(path) -> None:
    """Removes the temporary files that killed writers of `path` left behind; for callers that are its only writer."""
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
