"""Which folders below photos and label maps are splits: for the converter of folders and for checks of folders."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ofaseg.data.codec import PHOTO_SUFFIXES
from ofaseg.data.pairs import files_by_stem
from ofaseg.data.rows import ShardError

_SPLIT_NAME = re.compile(r"(train|training|val|valid|validation|trainval|test|testing)(\d{4})?", re.IGNORECASE)
_USUAL_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class SplitFolders(NamedTuple):
    """`names` of the splits that photos and label maps share, train first, and one error per place that is left out for them."""

    names: list[str]
    left_out: list[ShardError]


def find_split_folders(images, label_maps) -> SplitFolders:
    """The split folders (train, val2017, test ...) below folder `images` that folder `label_maps` has, too.

    Without any the photos are one set, and nothing is left out but split folders without a partner.

    Raises:
        FileNotFoundError: one of the folders is missing.
    """
    images, label_maps = Path(images), Path(label_maps)
    photo_splits, label_splits = ({path.name for path in _split_folders(folder)} for folder in (images, label_maps))
    names = sorted(photo_splits & label_splits, key=lambda name: (not name.lower().startswith("train"), name))
    left_out = []
    for name in sorted(photo_splits ^ label_splits):
        here, there = (images, label_maps) if name in photo_splits else (label_maps, images)
        problem = f"the folder is left out, for there is no {there / name}; add it, or rename one of the two"
        left_out.append(ShardError.at(here / name, problem))
    if names:
        left_out += _beside(images, label_maps, names, photo_splits)
    return SplitFolders(names, left_out)


def usual_names(folders: list[str]) -> dict[str, str]:
    """Split -> its folder, of names from `find_split_folders`: without year and capitals, train, val or test for longer forms,
    as training looks for them. Where two folders would be one split (train2014, train2017), each keeps its own name."""
    usual = [_usual_name(name) for name in folders]
    return {new if usual.count(new) == 1 else name: name for name, new in zip(folders, usual)}


def _usual_name(folder: str) -> str:
    name = _SPLIT_NAME.fullmatch(folder)[1].lower()
    return _USUAL_NAMES.get(name, name)


def _split_folders(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_dir() and _SPLIT_NAME.fullmatch(path.name))


def _beside(images: Path, label_maps: Path, names: list[str], photo_splits: set[str]) -> list[ShardError]:
    """Photos that lie in no split folder, be it left out or not; label maps below the photos do not count as photos."""
    photos = (path for paths in files_by_stem(images, PHOTO_SUFFIXES).values() for path in paths)
    beside = [path for path in photos if path.relative_to(images).parts[0] not in photo_splits and not path.is_relative_to(label_maps)]
    if not beside:
        return []
    number = f"{len(beside)} photos (first {min(beside).name}) lie" if len(beside) > 1 else f"1 photo ({beside[0].name}) lies"
    problem = f"{number} beside the split folders {', '.join(names)}: left out"
    cure = "move them and their label maps into one of these" if len(beside) > 1 else "move it and its label map into one of these"
    return [ShardError.at(images, f"{problem}; {cure}")]
