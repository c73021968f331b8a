"""The files of a data folder: which shards belong to a split, and what vocabulary.json says about them."""

import difflib
import glob
import json
import os
import re
import shlex
from pathlib import Path
from typing import List, Optional, Union

from ofaseg.data.rows import ShardError
from ofaseg.vocabulary import VocabularyError

_EXTENSIONS = (".tsv", ".parquet")
_SHARD_NAME = re.compile(r"^(?P<split>.+?)(?:-(?P<number>\d{5,})-of-(?P<count>\d{5,}))?\.(?P<format>tsv|parquet)$")
_VALIDATION_NAMES = ("valid", "val", "validation")
BY_SPLIT = ("num_rows", "content_hash", "files")
FOLDER_KEYS = ("columns", "format", "writing", *BY_SPLIT)
"""What vocabulary.json says of the files, beside what it says of the classes."""
_ENTRY_TYPES = {"num_rows": int, "content_hash": str, "files": list}
_FILE_TYPES = {"name": str, "rows": int, "content_hash": str}
_TYPE_NAMES = {int: "a number", str: "a text", list: "a list"}


def split_names(split: str) -> tuple[str, ...]:
    """The names under which a split may be stored, `split` first; valid, val and validation stand in for each other."""
    return (split, *(name for name in _VALIDATION_NAMES if name != split)) if split in _VALIDATION_NAMES else (split,)


def shard_name(split: str, number: int, count: int, format: str) -> str:
    """File name of shard `number` (from 0) of `count`."""
    return f"{split}-{number:05d}-of-{count:05d}.{format}"


def read_description(root) -> Optional[dict]:
    """The content of `vocabulary.json` in `root`, None when there is none or `root` is empty.

    Raises:
        VocabularyError: the file is malformed.
    """
    if not str(root):
        return None
    path = Path(root) / "vocabulary.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{path}: not valid JSON ({error}); write the shards again") from error
    if not isinstance(data, dict):
        raise VocabularyError(f"{path}: needs a JSON object; write the shards again")
    return data


def described_split(root, description: dict, name: str) -> dict:
    """What vocabulary.json says of split `name`: those keys of `BY_SPLIT` that it has.

    Raises:
        ShardError: an entry of another type, or a file without name, rows or content_hash (edited by hand).
    """

    def fault(problem: str) -> ShardError:
        return ShardError.at(Path(root) / "vocabulary.json", f"{problem}; restore the file from a copy, or write the split again")

    entries = {}
    for key, kind in _ENTRY_TYPES.items():
        by_split = description.get(key, {})
        if not isinstance(by_split, dict) or not isinstance(by_split.get(name, kind()), kind):
            raise fault(f"{key} of split {name!r} is not {_TYPE_NAMES[kind]}")
        if name in by_split:
            entries[key] = by_split[name]
    for k, file in enumerate(entries.get("files", ())):
        for key, kind in _FILE_TYPES.items():
            if not isinstance(file, dict) or not isinstance(file.get(key), kind):
                raise fault(f"files of split {name!r}: entry {k} has no {key}, {_TYPE_NAMES[kind]}")
    return entries


def stored_name(root, split: str) -> Optional[str]:
    """The name under which `split` is stored in folder `root`, see `split_names`; None without a file of it."""
    splits = list_splits(root) if os.path.isdir(root) else {}
    return next((name for name in split_names(split) if name in splits), None)


def splits_being_written(root, description: dict) -> list[str]:
    """The splits whose files were not all exchanged. Raises ShardError when vocabulary.json does not list names there."""
    writing = description.get("writing", [])
    if not isinstance(writing, list) or not all(isinstance(name, str) for name in writing):
        problem = "writing is not a list of splits; restore the file from a copy, or write the splits again"
        raise ShardError.at(Path(root) / "vocabulary.json", problem)
    return writing


def check_written(root, split: str, description: dict) -> None:
    """Raises ShardError when the writing of `split` was interrupted while its files were being exchanged."""
    writing = splits_being_written(root, description)
    if not writing:
        return
    stored = stored_name(root, split)
    for name in (stored,) if stored else split_names(split):
        if name in writing:
            problem = f"writing split {name!r} was interrupted, or another process is at it: old and new files may be mixed"
            cure = f"write the split again with data_prep/prepare.py ({verify_command(root)} tells which splits are whole)"
            raise ShardError.at(root, f"{problem}; {cure}")


def verify_command(root) -> str:
    """What to type to compare every row of a folder with what was written."""
    return f"`python data_prep/prepare.py --verify {shlex.quote(str(root))}`"


def check_row_counts(root, split: str, description: dict, counts: dict[str, int]) -> None:
    """Compares the rows of a split's files, path -> number of rows in order, with what vocabulary.json says.

    Names are not compared, for files may be renamed; files that were joined are compared in total.

    Raises:
        ShardError: another number of rows; the message names the file where vocabulary.json lists the files.
    """
    for name in (stored_name(root, split) or split, *split_names(split)):
        entries = described_split(root, description, name)
        if "num_rows" in entries:
            break
    else:
        return
    files = entries.get("files", [])
    for (path, rows), file in zip(counts.items(), files if len(files) == len(counts) else ()):
        if rows != file["rows"]:
            raise ShardError.at(path, row_count_problem(root, rows, file["rows"]))
    found, expected = sum(counts.values()), entries["num_rows"]
    if found != expected:
        raise ShardError.at(root, f"split {split!r} has {row_count_problem(root, found, expected)}")


def row_count_problem(root, found: int, expected: int) -> str:
    """Says that a file or split of folder `root` has another number of rows than it should, and what to do."""
    cure = f"an incomplete or mixed copy; copy or write the folder again ({verify_command(root)} lists every such file)"
    return f"{found} rows, vocabulary.json says {expected}: {cure}"


def list_splits(root) -> dict[str, list[str]]:
    """Split name -> its shard files in `root` in row order, of all formats found."""
    splits: dict[str, list[str]] = {}
    for entry in sorted(os.listdir(root)):
        match = _SHARD_NAME.match(entry)
        if match and not entry.startswith("."):
            splits.setdefault(match["split"], []).append(str(Path(root) / entry))
    return splits


def find_split(root, split: str) -> list[str]:
    """The shard files of `split` in folder `root`, in row order; see `split_names` for other names of it.

    Raises:
        ShardError: no such folder or split (the message lists those there), shards missing, two sets of shards.
    """
    if not os.path.isdir(root):
        raise missing_folder(root)
    splits = list_splits(root)
    paths = next((splits[name] for name in split_names(split) if name in splits), None)
    if not paths:
        there = f"it has {', '.join(splits)}" if splits else "it has no .tsv or .parquet file"
        raise ShardError.at(root, f"no shards of split {split!r}; {there}. Write them with data_prep/prepare.py, or name another split")
    matches = [_SHARD_NAME.match(Path(path).name) for path in paths]
    kinds = {(match["format"], match["count"]) for match in matches}
    if len(kinds) > 1:
        names = ", ".join(Path(path).name for path in paths[:6])
        raise ShardError.at(root, f"more than one set of shards of split {split!r} ({names}); remove all but one")
    count = matches[0]["count"]
    missing = sorted(set(range(int(count or 1))) - {int(match["number"] or 0) for match in matches})
    if missing:
        problem = f"{len(missing)} of {int(count)} shards of split {split!r} are missing, the first is number {missing[0]:05d}"
        raise ShardError.at(root, f"{problem}; copy the folder again")
    return paths


def missing_folder(root) -> ShardError:
    """The error for a folder of shards that is not there, with names close to it."""
    return ShardError.at(root, f"no such folder{_near(root)}; give the folder that data_prep/prepare.py wrote")


def _near(path) -> str:
    """ " (did you mean ...?)" with names close to a missing path, or what its folder holds."""
    path = Path(path)
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return f" (nor the folder {path.parent})"
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if close:
        return f" (did you mean {' or '.join(close)}?)"
    shards = [name for name in names if name.endswith(_EXTENSIONS)]
    return f" (there is {', '.join(shards[:5])})" if shards else ""


def expand_paths(paths: Union[str, List[str]]) -> list[str]:
    """Existing files behind paths, comma-separated paths and globs, in the order given (a glob's matches sorted)."""
    if isinstance(paths, str | os.PathLike):
        text = os.fspath(paths)
        paths = [text] if os.path.exists(text) else [part.strip() for part in text.split(",") if part.strip()]
    result = []
    for path in map(os.fspath, paths):
        if os.path.isdir(path):
            raise ShardError.at(path, "a folder, not a file; give a file, a glob such as 'train-*.tsv', or use ShardReader.for_split")
        found = [path] if os.path.isfile(path) else sorted(glob.glob(path))
        found = [name for name in found if name.endswith(_EXTENSIONS) or name == path]
        if not found:
            raise ShardError.at(path, f"no such file{_near(path)}; check the path")
        result += found
    if not result:
        raise ShardError("no shard files given; name at least one .tsv or .parquet file")
    return result
