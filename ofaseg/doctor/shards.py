"""Checks of data folders and single shard files."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional

from tqdm import tqdm

from ofaseg.data import folder as folders
from ofaseg.data.exchange import content_hash
from ofaseg.data.foreign import check_own_kind
from ofaseg.data.rows import ShardError
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.data.tsv import index_problem
from ofaseg.doctor.findings import Findings, finding, from_error
from ofaseg.doctor.labels import LabelTally, maybe_shifted
from ofaseg.doctor.scan import Piece, Seen, row_tasks, run, scan_rows
from ofaseg.doctor.splits import check_ids, check_labels, check_photos, gather
from ofaseg.doctor.vocabulary import check_names, check_written_names
from ofaseg.vocabulary import ClassVocabulary, VocabularyError


class Opened(NamedTuple):
    """A shard file that could be opened."""

    path: str
    rows: int
    columns: tuple[str, ...]


@dataclass
class Known:
    """What is known of a data folder while its splits are checked: vocabulary.json, and the photos and label values so far."""

    description: dict
    vocabulary: Optional[ClassVocabulary]
    photos: dict[bytes, tuple[str, Seen]] = field(default_factory=dict)
    together: LabelTally = field(default_factory=LabelTally)


def check_data_folder(root: str, findings: Findings, workers: int = 1, quiet: bool = False) -> None:
    """Checks vocabulary.json and every split of a data folder."""
    description, vocabulary = _description(root, findings)
    splits = folders.list_splits(root)
    named = [name for key in ("files", "num_rows") if isinstance(description.get(key), dict) for name in description[key]]
    for split in dict.fromkeys(named):
        if split not in splits:
            message = f"vocabulary.json lists split {split!r}, which has no file here"
            findings.add(finding("incomplete_split", root, message, "copy the folder again, or write the split again"))
    opened = {split: _open_split(root, split, paths, description, findings) for split, paths in splits.items()}
    tasks = {split: _tasks(files, vocabulary) for split, files in opened.items()}
    known = Known(description, vocabulary)
    for split, files in opened.items():
        total = sum(file.rows for file in files)
        with tqdm(total=total, desc=f"{Path(root).name} {split}", unit="row", disable=quiet or None) as bar:
            _finish_split(root, split, files, run(scan_rows, tasks[split], workers, bar), known, findings)
        if vocabulary is not None:
            findings.add(*check_written_names(vocabulary, root, split))
    if vocabulary is not None:
        findings.add(*maybe_shifted(known.together, vocabulary, root))


def check_shard_file(path: str, findings: Findings, workers: int = 1, quiet: bool = False) -> None:
    """Checks one .tsv or .parquet file, with the vocabulary.json beside it when there is one."""
    _, vocabulary = _description(str(Path(path).parent), findings)
    files = [file for file in (_open(path, findings),) if file is not None]
    with tqdm(total=sum(file.rows for file in files), desc=Path(path).name, unit="row", disable=quiet or None) as bar:
        pieces = run(scan_rows, _tasks(files, vocabulary), workers, bar)
        known = Known({}, vocabulary)
        _finish_split(str(Path(path).parent), "", files, pieces, known, findings)
    if vocabulary is not None:
        findings.add(*maybe_shifted(known.together, vocabulary, path))


def _description(root: str, findings: Findings) -> tuple[dict, Optional[ClassVocabulary]]:
    """(content of vocabulary.json, its classes); {} and None where they cannot be used."""
    where = Path(root) / "vocabulary.json"
    try:
        description = folders.read_description(root) or {}
    except VocabularyError as error:
        findings.add(from_error("bad_vocabulary", error, where))
        return {}, None
    try:
        vocabulary = load_vocabulary(root)
    except VocabularyError as error:
        findings.add(from_error("bad_vocabulary", error, where))
        return description, None
    if vocabulary is not None:
        findings.add(*check_names(vocabulary.names, str(where)))
    return description, vocabulary


def _open_split(root: str, split: str, paths: list[str], description: dict, findings: Findings) -> list[Opened]:
    """The files of a split that can be opened; what is wrong with them as a set becomes findings."""
    whole = True
    for check in (lambda: folders.find_split(root, split), lambda: folders.check_written(root, split, description)):
        try:
            check()
        except ShardError as error:
            findings.add(from_error(_code_of("incomplete_split", error), error))
            whole = False
    files = [_open(path, findings) for path in paths]
    if whole and all(files):
        try:
            folders.check_row_counts(root, split, description, {file.path: file.rows for file in files})
        except ShardError as error:
            findings.add(from_error(_code_of("row_count", error), error))
    return [file for file in files if file is not None]


def _code_of(code: str, error: ShardError) -> str:
    """`code`, unless it is vocabulary.json that is wrong."""
    return "bad_vocabulary" if error.file.endswith("vocabulary.json") else code


def _open(path: str, findings: Findings) -> Optional[Opened]:
    """Opens a shard file; None, and a finding, when that is not possible."""
    try:
        check_own_kind(path)
        problem = index_problem(path) if path.endswith(".tsv") and os.path.getsize(path) else ""
        if problem:
            cure = "nothing to do when the TSV was changed on purpose: it is indexed again when it is read"
            findings.add(finding("stale_index", path, f"its index is not used, since {problem}", cure))
        with ShardReader([path]) as reader:
            opened = Opened(path, len(reader), reader.columns)
    except VocabularyError:  # reported with the folder
        return None
    except ShardError as error:
        findings.add(from_error("bad_column" if error.column else "bad_file", error))
        return None
    except OSError as error:
        findings.add(finding("unreadable", path, f"cannot be read ({error.strerror or error})", "check its permissions and the disk"))
        return None
    _check_columns(opened, findings)
    if path.endswith(".tsv") and _has_windows_ends(path):
        findings.add(finding("line_ends", path, "lines end in CR LF", "nothing to do: they are read as LF"))
    return opened


def _has_windows_ends(path: str) -> bool:
    with open(path, "rb") as file:
        return file.readline().endswith(b"\r\n")


def _check_columns(file: Opened, findings: Findings) -> None:
    """Columns that vocabulary.json promises and every row needs."""
    description = folders.read_description(Path(file.path).parent) or {}
    promised = description.get("columns") if isinstance(description.get("columns"), list) else []
    for name in dict.fromkeys([*promised, "image", "id"]):
        if name not in file.columns:
            message = f"the file has the columns {', '.join(file.columns)}"
            findings.add(finding("bad_column", file.path, message, "add the missing one: write the file again", column=str(name)))


def _tasks(files: list[Opened], vocabulary: Optional[ClassVocabulary]) -> list:
    return [task for file in files for task in row_tasks(file.path, file.rows, vocabulary)]


def _finish_split(root: str, split: str, files: list[Opened], pieces: Iterable[Piece], known: Known, findings: Findings) -> None:
    """Adds the findings of all rows of a split, and those that only all rows together show."""
    whole = gather(pieces, findings)
    where = files[0].path if len(files) == 1 else root
    check_labels(whole, known.vocabulary, where, findings, known.together)
    if known.vocabulary is None and whole.tally.maps and not findings.counts["bad_vocabulary"]:
        cure = "write a vocabulary.json with the class names, or train with --class-names"
        findings.add(finding("no_vocabulary", where, "label maps, but no class names in a vocabulary.json beside them", cure))
    check_ids(whole.seen, findings)
    check_photos(split, whole.seen, known.photos, findings)
    _check_hashes(root, split, files, whole.seen, known.description, findings)


def _check_hashes(root: str, split: str, files: list[Opened], seen: list[Seen], description: dict, findings: Findings) -> None:
    """Compares files whose rows could all be read with the hashes in vocabulary.json."""
    if not split:
        return
    try:
        entries = folders.described_split(root, description, split).get("files", [])
    except ShardError:  # reported when the split was opened
        return
    hashes = {entry["name"]: (entry["rows"], entry["content_hash"]) for entry in entries}
    for file in files:
        digests = [sample.digest for sample in seen if sample.file == file.path]
        rows, expected = hashes.get(Path(file.path).name, (None, None))
        if rows == len(digests) and all(digests) and content_hash(digests) != expected:
            message = "its rows are not those that were written (another hash)"
            findings.add(finding("content_changed", file.path, message, "copy or write the folder again"))
