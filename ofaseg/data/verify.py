"""Whether a data folder still holds what was written: for people who copied one, and for tools.

`python data_prep/prepare.py --verify FOLDER` lists what differs.
"""

import os
from typing import NamedTuple, Optional, Sequence

from ofaseg.data.exchange import content_hash
from ofaseg.data.folder import check_written, described_split, find_split, read_description, row_count_problem, splits_being_written
from ofaseg.data.rows import ShardError, row_digest
from ofaseg.data.shards import ShardReader


class SplitCheck(NamedTuple):
    """The comparison of one split: its number of rows, and an error for each file that differs or cannot be read."""

    rows: int
    faults: list[ShardError]


def verify_shards(root, splits: Optional[Sequence[str]] = None) -> dict[str, int]:
    """Reads every row of a data folder, without decoding pictures, and compares with the hashes in vocabulary.json.

    Opening a split compares row counts only; this finds changed content as well. Files may have been renamed or joined.

    Args:
        root: the data folder.
        splits: names as in vocabulary.json; default all that it lists, with those whose writing was interrupted.

    Returns: split -> number of rows, all as they were written.

    Raises:
        ShardError: the first file that differs or cannot be read, or vocabulary.json holds no hashes of the files.
        VocabularyError: vocabulary.json is malformed.
    """
    result = {}
    for split in splits or _listed_splits(root):
        result[split], faults = verify_split(root, split)
        if faults:
            raise faults[0]
    return result


def verify_folder(root) -> dict[str, SplitCheck]:
    """As `verify_shards` of all splits, but goes on after a fault. Raises what concerns the folder as a whole."""
    return {split: verify_split(root, split) for split in _listed_splits(root)}


def _listed_splits(root) -> list[str]:
    if not os.path.isdir(root):
        raise ShardError.at(root, "no such folder; give one that data_prep/prepare.py wrote")
    description = read_description(root) or {}
    names = [name for key in ("files", "num_rows") if isinstance(description.get(key), dict) for name in description[key]]
    names = list(dict.fromkeys([*names, *splits_being_written(root, description)]))
    if not names:
        raise ShardError.at(root, "vocabulary.json holds no hashes of files; folders written by data_prep/prepare.py have them")
    return names


def verify_split(root, split: str) -> SplitCheck:
    """Compares one split, named as in vocabulary.json. Raises VocabularyError when that is malformed."""
    description = read_description(root) or {}
    try:
        check_written(root, split, description)
        entries = described_split(root, description, split)
        missing = [key for key in ("num_rows", "content_hash", "files") if key not in entries]
        if missing:
            there = ", ".join(name for name in description.get("files", {}) if name != split) or "no other"
            problem = f"vocabulary.json holds no hashes of split {split!r} ({missing[0]} is missing); it has those of {there}"
            raise ShardError.at(root, f"{problem}. Write the split again with data_prep/prepare.py")
        if not isinstance(description.get("columns"), list):
            raise ShardError.at(root, "vocabulary.json does not list the columns; restore it from a copy, or write the splits again")
        paths = find_split(root, split)
    except ShardError as error:
        return SplitCheck(0, [error])
    return _compare(root, split, paths, entries)


def _compare(root, split: str, paths: list[str], entries: dict) -> SplitCheck:
    """The rows of the files of one split and what vocabulary.json says of them."""
    files = entries["files"] if len(entries["files"]) == len(paths) else [None] * len(paths)
    total: list[bytes] = []
    faults = []
    for path, file in zip(paths, files):
        try:
            digests = _digests(path)
            total += digests
            if file is not None and len(digests) != file["rows"]:
                raise ShardError.at(path, row_count_problem(root, len(digests), file["rows"]))
            if file is not None and content_hash(digests) != file["content_hash"]:
                raise ShardError.at(path, "its rows are not those that were written (another hash); copy or write the folder again")
        except ShardError as error:
            faults.append(error)
    if not faults and len(total) != entries["num_rows"]:
        faults.append(ShardError.at(root, f"split {split!r} has {row_count_problem(root, len(total), entries['num_rows'])}"))
    elif not faults and content_hash(total) != entries["content_hash"]:
        problem = f"split {split!r} does not hold the rows that were written (another hash); copy or write it again"
        faults.append(ShardError.at(root, problem))
    return SplitCheck(len(total), faults)


def _digests(path: str) -> list[bytes]:
    digests = []
    with ShardReader(path) as reader:
        for i in range(len(reader)):
            row = reader[i]
            try:
                digests.append(row_digest(row))
            except ValueError as error:  # an infinite or undefined coordinate, which no writer of ours lets pass
                raise ShardError.at(path, f"{error}; write the row again", i) from error
    return digests
