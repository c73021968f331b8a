"""Files that are something else than their name says: archives, Git LFS pointers, web pages or Parquet under another file's name."""

import os

from ofaseg.data.rows import ShardError

_KINDS = (
    (b"\x1f\x8b", "a gzip file", "unpack it with gunzip"),
    (b"PK\x03\x04", "a zip file", "unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"<!doctype", "a web page, not the file itself", "download the file again: the server sent a page"),
    (b"<html", "a web page, not the file itself", "download the file again: the server sent a page"),
    (b"PAR1\x15", "a Parquet file", "rename it to end in .parquet"),  # \x15 starts its first page: no text goes on like that
)


def foreign_kind(path) -> tuple[str, str]:
    """(what a file really is, what to do) when its first bytes are those of another kind; ("", "") otherwise.

    Raises:
        OSError: the file cannot be opened or read.
    """
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    if os.fspath(path).endswith(".parquet") and start.startswith(b"par1"):
        return "", ""
    return next(((kind, cure) for magic, kind, cure in _KINDS if start.startswith(magic.lower())), ("", ""))


def check_own_kind(path) -> None:
    """Raises ShardError when a shard file is of another kind, or cannot be opened."""
    try:
        kind, cure = foreign_kind(path)
    except OSError as error:
        cure = "check its permissions and the disk"
        if os.path.islink(path):
            cure = f"it is a link to {os.readlink(path)}: restore that file"
        raise ShardError.at(path, f"cannot be read ({error.strerror or error}); {cure}") from error
    if kind:
        raise ShardError.at(path, f"{kind}; {cure}")
