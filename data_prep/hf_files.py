"""How a Hugging Face dataset lies on disk: which splits it has, and which files hold the rows of a split."""

import contextlib
import logging
import re
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from data_prep.source import SourceError

logger = logging.getLogger(__name__)

_WORDS = r"(train|training|trainval|val|valid|validation|dev|test|testing)"
_SPLIT_IN_NAME = re.compile(rf"(?<![a-z]){_WORDS}(?![a-z])", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(rf"{_WORDS}(\d{{4}})?", re.IGNORECASE)
_SHARD_NUMBER = re.compile(r"(-\d{5,}-of-\d{5,}.*|[-_.]\d+)$")
_LEVELS = ("*.parquet", "*/*.parquet", "*/*/*.parquet")


class LoadedSplit(NamedTuple):
    """A split.

    Attributes:
        dataset: `datasets.Dataset`.
        files: the files that hold its rows, in order; none where each row has files of its own.
        ends: for each file, the number of rows up to its end.
    """

    dataset: object
    files: tuple[str, ...]
    ends: tuple[int, ...]


def list_splits(root) -> list[str]:
    """The splits of the dataset at `root`. Raises as `load_split`."""
    files = _parquet_files(root)
    return list(files or _load_whole(root))


def load_split(root, split: str) -> LoadedSplit:
    """One split of the dataset at `root`.

    Raises:
        FileNotFoundError: there is nothing at `root`.
        SourceError: `datasets` cannot read it, or it is several datasets.
    """
    import datasets
    import pyarrow.parquet as pq

    parquet = _parquet_files(root)
    with _read_errors(root):
        if parquet:
            files = parquet[split]
            dataset = datasets.load_dataset("parquet", data_files={"train": files}, split="train")
            counts = [pq.read_metadata(file).num_rows for file in files]
        else:
            dataset = _load_whole(root)[split]
            files = [entry["filename"] for entry in dataset.cache_files] if _is_saved(Path(root)) else []
            counts = [len(datasets.Dataset.from_file(file)) for file in files]
    return LoadedSplit(dataset, tuple(files), tuple(accumulate(counts)))


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _load_whole(root) -> dict:
    """Split -> dataset, of a saved dataset or an imagefolder."""
    import datasets

    with _read_errors(root):
        if not _is_saved(Path(root)):
            return dict(datasets.load_dataset("imagefolder", data_dir=str(root)))
        loaded = datasets.load_from_disk(str(root))
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


@contextlib.contextmanager
def _read_errors(root):
    """Turns what `datasets` raises into a SourceError that names `root`."""
    import datasets

    try:
        yield
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(f"{root}: datasets cannot read it ({error}); save it again with save_to_disk") from error


def _parquet_files(root) -> dict[str, list[str]]:
    """Split -> its Parquet files, at or below `root`; empty for a dataset of another kind. Raises as `load_split`."""
    path = Path(root)
    if not path.exists():
        cure = "a dataset of the Hub is saved first, see the docstring of data_prep/hf.py"
        raise FileNotFoundError(f"{root}: no such file or folder; {cure}")
    if path.is_file():
        return parquet_splits(path.parent.parent, [path])
    return {} if _is_saved(path) else parquet_splits(path, _parquet_below(path))


def _parquet_below(folder: Path) -> list[Path]:
    """The Parquet files of the uppermost level that has any; metadata.parquet is an imagefolder's list and no dataset."""
    for level in _LEVELS:
        found = sorted(path for path in folder.glob(level) if path.name != "metadata.parquet")
        found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
        if found:
            return found
    return []


def parquet_splits(root: Path, files: list[Path]) -> dict[str, list[str]]:
    """Split -> files. A file's split is its name without the number, where that speaks of a split, else its folder's name.

    Where neither speaks of a split for any file, all are split "train", and the log says so; where only some do, each other name
    is a split of its own, so that test photos never get among those of training.

    Raises:
        SourceError: the files lie in several folders, which are datasets of their own.
    """
    found, speaks, folders = [], False, set()
    for file in files:
        name, folder = _SHARD_NUMBER.sub("", file.stem), file.parent
        if folder != root and not _SPLIT_IN_NAME.search(name) and _SPLIT_FOLDER.fullmatch(folder.name):
            name, folder = folder.name, folder.parent
        speaks = speaks or bool(_SPLIT_IN_NAME.search(name))
        folders.add(folder)
        found.append((name, str(file)))
    if len(folders) > 1:
        there = ", ".join(sorted(folder.name for folder in folders))
        raise SourceError(f"{root}: Parquet files of several datasets ({there}); give the folder of one of them as --root")
    splits: dict[str, list[str]] = {}
    for name, file in found:
        splits.setdefault(name if speaks else "train", []).append(file)
    if found and not speaks:
        logger.warning("%s: no file name tells a split; split train is all of %s", root, ", ".join(Path(file).name for file in files[:5]))
    return splits
