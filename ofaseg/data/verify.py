"""Whether a data folder still holds what was written: for people who copied one, and for tools."""

from typing import Optional, Sequence

from ofaseg.data.folder import find_split, read_description
from ofaseg.data.rows import ShardError, row_digest
from ofaseg.data.shard_writer import content_hash
from ofaseg.data.shards import ShardReader


def verify_shards(root, splits: Optional[Sequence[str]] = None) -> dict[str, int]:
    """Reads every row of a data folder, without decoding pictures, and compares with the hashes in vocabulary.json.

    Opening a split compares row counts only; this finds changed content as well. Files may have been renamed or joined.

    Args:
        root: the data folder.
        splits: names as in vocabulary.json; default all that it lists.

    Returns: split -> number of rows, all as they were written.

    Raises:
        ShardError: the first file that differs or cannot be read, or vocabulary.json holds no hashes of the files.
    """
    files = (read_description(root) or {}).get("files", {})
    unknown = [split for split in splits or () if split not in files]
    if unknown or not files:
        what = f"of split {unknown[0]!r}" if unknown else "of files"
        there = f"; it has those of {', '.join(files)}" if files else "; folders written by data_prep/prepare.py have them"
        raise ShardError.at(root, f"vocabulary.json holds no hashes {what}{there}")
    return {split: _verify_split(root, split, files[split]) for split in splits or files}


def _verify_split(root, split: str, files: list[dict]) -> int:
    """Number of rows of one split. Raises ShardError for a file that is not as `files` says."""
    ShardReader.for_split(root, split).close()  # row counts, missing and mixed files
    paths = find_split(root, split)
    digests = [_digests(path) for path in paths]
    total = sum(digests, [])
    for path, rows, file in zip(paths, digests, files if len(files) == len(paths) else ()):
        if content_hash(rows) != file["content_hash"]:
            raise ShardError.at(path, "its rows are not those that were written (another hash); copy or write the folder again")
    if content_hash(total) != read_description(root)["content_hash"][split]:
        raise ShardError.at(root, f"split {split!r} does not hold the rows that were written (another hash); copy or write it again")
    return len(total)


def _digests(path: str) -> list[bytes]:
    with ShardReader(path) as reader:
        return [row_digest(reader[i]) for i in range(len(reader))]
