"""Shards as a folder of ordinary files, and back: photos and maps to look at and edit, with everything else beside them.

    ROOT/images/<split>/<name>.jpg (or .png)      the bytes of column image
    ROOT/labels/<split>/<name>.png                those of column label_map
    ROOT/segments/<split>/<name>.png              those of column segment_map
    ROOT/rows/<split>.jsonl                       per row: its id, its files (relative to ROOT), captions, boxes, segments
    ROOT/classes.txt                              one class name per line
    ROOT/metadata.json                            what vocabulary.json says of the classes, the columns and the splits

Reading the folder gives the same rows in the same order, byte for byte.
"""

import json
import re
from pathlib import Path
from typing import Optional, Sequence

from tqdm import tqdm

from ofaseg.atomic import atomic_folder
from ofaseg.data import codec
from ofaseg.data.rows import FILE_COLUMNS, LIST_COLUMNS, ShardError, check_columns, text_to_list
from ofaseg.data.shards import ShardReader, list_splits, load_vocabulary
from ofaseg.vocabulary import ClassVocabulary

METADATA = "metadata.json"
_KIND = "ofaseg folder, version 1"
_SUBFOLDERS = {"image": "images", "label_map": "labels", "segment_map": "segments"}
_SAFE_NAME = re.compile(r"(\w[\w\-]*/)*\w[\w\-.]*", re.ASCII)
_MAX_NAME = 100


def write_folder(root, out, splits: Optional[Sequence[str]] = None) -> dict[str, int]:
    """Writes the splits of data folder `root` as folder `out`, which must not exist or be empty; all of it or nothing.

    Args:
        splits: default all of `root`.

    Returns: split -> number of rows.

    Raises:
        ShardError: `out` is not empty, a shard is unreadable, an unknown split, or the disk fails.
        VocabularyError: vocabulary.json is malformed.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShardError.at(out, "is there already; choose a new folder, or remove it first")
    names = list(splits or list_splits(root))
    if not names:
        raise ShardError.at(root, "it has no .tsv or .parquet file; give a folder that data_prep/prepare.py wrote")
    readers = {split: ShardReader.for_split(root, split) for split in names}
    vocabulary, columns = load_vocabulary(root), readers[names[0]].columns
    try:
        with atomic_folder(out) as folder:
            for split, reader in readers.items():
                _write_split(reader, folder, split)
            _write_metadata(folder, vocabulary, columns, {split: len(reader) for split, reader in readers.items()})
    except OSError as error:
        problem = f"cannot write ({error.strerror or error}); check the disk and the path"
        raise ShardError.at(error.filename or out, problem) from error
    return {split: len(reader) for split, reader in readers.items()}


def _write_split(reader: ShardReader, folder: Path, split: str) -> None:
    taken: set[str] = set()
    listing = folder / "rows" / f"{split}.jsonl"
    listing.parent.mkdir(exist_ok=True)
    with open(listing, "w", encoding="utf-8") as file:
        for i in tqdm(range(len(reader)), desc=split, unit="row"):
            row = reader[i]
            name = _file_name(row["id"], i, taken)
            entry = {"id": row["id"]}
            for column in row:
                if column in FILE_COLUMNS:
                    entry[column] = _write_file(folder, split, name, column, row[column])
                elif column in LIST_COLUMNS:
                    entry[column] = row[column]
            file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")


def _file_name(sample_id: str, i: int, taken: set[str]) -> str:
    """A name for the files of a row: its id where every disk can hold that, else its number."""
    plain = len(sample_id) <= _MAX_NAME and _SAFE_NAME.fullmatch(sample_id) and not sample_id.endswith(".")
    name = sample_id if plain and sample_id.lower() not in taken else f"row-{i:08d}"
    while name.lower() in taken:
        name += "_"
    taken.add(name.lower())
    return name


def _write_file(folder: Path, split: str, name: str, column: str, data: Optional[bytes]) -> Optional[str]:
    """Writes one file; returns its path relative to `folder`, None without data."""
    if data is None:
        return None
    path = folder / _SUBFOLDERS[column] / split / f"{name}{codec.suffix_of(data) or '.img'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.relative_to(folder).as_posix()


def _write_metadata(folder: Path, vocabulary: Optional[ClassVocabulary], columns: Sequence[str], splits: dict[str, int]) -> None:
    classes = vocabulary.to_json() if vocabulary is not None else None
    metadata = {"kind": _KIND, "columns": list(columns), "splits": splits, "classes": classes}
    (folder / METADATA).write_text(json.dumps(metadata, indent=1, ensure_ascii=False), encoding="utf-8")
    if vocabulary is not None:
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in vocabulary.names), encoding="utf-8")


def read_metadata(root) -> Optional[dict]:
    """The content of metadata.json in `root`; None when `root` was not written by `write_folder`.

    Raises:
        ShardError: it is ours but damaged.
    """
    path = Path(root) / METADATA
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        cure = "restore it, or remove it to read the folder as photos and label maps"
        raise ShardError.at(path, f"not valid JSON ({error}); {cure}") from error
    if not isinstance(metadata, dict) or metadata.get("kind") != _KIND:
        return None
    columns, splits = metadata.get("columns"), metadata.get("splits")
    if not isinstance(columns, list) or not isinstance(splits, dict) or not isinstance(metadata.get("classes"), dict | None):
        raise ShardError.at(path, "columns, splits or classes are not as they were written; restore the file from a copy")
    return metadata


class FolderRows:
    """The rows of one split of a folder that `write_folder` wrote, by number; `vocabulary` and `columns` as in the shards.

    Raises:
        ShardError: no such split, or a damaged or incomplete listing.
        VocabularyError: metadata.json describes no valid classes.
    """

    def __init__(self, root, split: str):
        self.root = Path(root)
        metadata = read_metadata(root)
        if metadata is None or split not in metadata["splits"]:
            there = ", ".join(metadata["splits"]) if metadata else "none"
            raise ShardError.at(self.root / METADATA, f"no split {split!r}; it has {there}")
        classes = metadata["classes"]
        self.vocabulary = None if classes is None else ClassVocabulary.from_json(classes, str(self.root / METADATA))
        self.columns = check_columns(metadata["columns"])
        self.listing = self.root / "rows" / f"{split}.jsonl"
        self.entries = self._read_listing()
        if len(self.entries) != metadata["splits"][split]:
            problem = f"{len(self.entries)} rows, metadata.json says {metadata['splits'][split]}; copy the folder again"
            raise ShardError.at(self.listing, problem)

    def _read_listing(self) -> list[dict]:
        try:
            lines = self.listing.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise ShardError.at(self.listing, f"cannot be read ({error}); copy the folder again") from error
        entries = []
        for i, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ShardError.at(self.listing, f"not valid JSON ({error}); correct the line", i) from error
            if not isinstance(entry, dict) or set(entry) != set(self.columns):
                raise ShardError.at(self.listing, f"not an object with {', '.join(self.columns)}; correct the line", i)
            entries.append(entry)
        return entries

    def __len__(self) -> int:
        return len(self.entries)

    def path(self, i: int, column: str) -> Optional[Path]:
        """The file of a column of row `i`, None without one. Raises ShardError for a path that leaves the folder."""
        relative = self.entries[i][column]
        if relative is None:
            return None
        if not isinstance(relative, str) or Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise ShardError.at(self.listing, f"{relative!r} is no path inside the folder; correct the line", i, column)
        return self.root / relative

    def __getitem__(self, i: int) -> dict:
        """Row `i`. Raises ShardError when one of its files is missing or its lists are malformed."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is outside 0..{len(self) - 1}")
        row = {}
        for column in self.columns:
            try:
                if column in FILE_COLUMNS:
                    path = self.path(i, column)
                    row[column] = None if path is None else path.read_bytes()
                elif column in LIST_COLUMNS:
                    row[column] = text_to_list(json.dumps(self.entries[i][column]).encode("utf-8"), column)
                else:
                    row[column] = self.entries[i][column]
            except (OSError, ValueError) as error:
                if isinstance(error, ShardError):
                    raise
                raise ShardError.at(self.listing, f"{error}; copy the folder again or correct the line", i, column) from error
        return row
