"""Which photo belongs to which label map, by file name: for converters of folders and for checks of folders."""

import os
import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from ofaseg.data.codec import PHOTO_SUFFIXES
from ofaseg.data.rows import ShardError

LABEL_SUFFIXES = (".png", ".json", ".bmp", ".tif", ".tiff")
"""Formats that keep class ids; `.json` are labelme polygons."""
_UNDECODED = re.compile("[\ud800-\udfff]")  # what Python makes of bytes that are not UTF-8


class Pair(NamedTuple):
    """A photo and its label map; `stem` is their common path below the two folders, with "/" and without the suffix."""

    stem: str
    image: Path
    label_map: Path


class Pairing(NamedTuple):
    """`pairs` sorted by stem, and one error per file that has no clear partner."""

    pairs: list[Pair]
    faults: list[ShardError]


def files_by_stem(folder, suffixes, ending: str = "", passed_over: str = "") -> dict[str, list[Path]]:
    """Stem -> the files of that stem in `folder` and the folders below, in sorted order; hidden files are left out.

    Args:
        suffixes: lower-case file suffixes that count; a file's may be in capitals.
        ending: what a name must end with before its suffix, such as "_leftImg8bit"; it is no part of the stem.
        passed_over: names that end with this before their suffix do not count, such as "_labelTrainIds".

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder that holds the files")
    found: dict[str, list[Path]] = defaultdict(list)
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            base, suffix = os.path.splitext(name)
            if name.startswith(".") or suffix.lower() not in suffixes or (passed_over and base.endswith(passed_over)):
                continue
            if base.endswith(ending):
                relative = Path(parent).relative_to(folder) / base[: len(base) - len(ending)]
                found[relative.as_posix()].append(Path(parent) / name)
    return dict(sorted(found.items()))


def pair_by_stem(
    images, label_maps, image_ending: str = "", label_ending: str = "", label_passed_over: str = "", label_suffixes=LABEL_SUFFIXES
) -> Pairing:
    """Pairs the photos below folder `images` with the label maps below folder `label_maps` that have the same stem.

    Args:
        image_ending, label_ending, label_passed_over: see `files_by_stem`.

    Returns: the pairs, and a fault for a photo without label map or the reverse, for a stem with several photos or label maps,
        for partners whose names differ in capitals only (some disks tell them apart, some do not), and for a name that cannot be
        a sample's (not UTF-8, or with a tab or line break).

    Raises:
        FileNotFoundError: one of the folders is missing.
    """
    photos = files_by_stem(images, PHOTO_SUFFIXES, image_ending)
    maps = files_by_stem(label_maps, label_suffixes, label_ending, label_passed_over)
    faults = [*_unusable_names(photos), *_unusable_names(maps)]
    faults += [*_doubled(photos, "photos"), *_doubled(maps, "label maps")]
    pairs = [Pair(stem, photos[stem][0], maps[stem][0]) for stem in photos if stem in maps and len(photos[stem]) == len(maps[stem]) == 1]
    lone_photos = {stem: files[0] for stem, files in photos.items() if stem not in maps}
    lone_maps = {stem: files[0] for stem, files in maps.items() if stem not in photos}
    faults += _differing_in_case(lone_photos, lone_maps)
    faults += _without_label_map(lone_photos, label_maps, label_suffixes, label_ending)
    faults += [
        ShardError.at(path, f"label map without a photo; put {stem}{image_ending}.jpg (or .png) below {images}, or remove the label map")
        for stem, path in lone_maps.items()
    ]
    return Pairing(sorted(pairs), sorted(faults, key=lambda fault: fault.file))


def likely_endings(images, label_maps) -> str:
    """The options that pair most photos with a label map, ``--label-ending _mask`` or ``--image-ending _photo``; "" when none does."""
    photos, maps = files_by_stem(images, PHOTO_SUFFIXES), files_by_stem(label_maps, LABEL_SUFFIXES)
    for option, stems, longer in (("--label-ending", photos, sorted(maps)), ("--image-ending", maps, sorted(photos))):
        endings = Counter()
        for stem in stems:
            following = longer[bisect_right(longer, stem) :][:1]
            endings.update(name[len(stem) :] for name in following if name.startswith(stem) and "/" not in name[len(stem) :])
        for ending, count in endings.most_common(1):
            if 2 * count > len(stems):
                return f"{option} {ending}"
    return ""


def _unusable_names(files: dict[str, list[Path]]) -> list[ShardError]:
    """Faults of files whose stem cannot be a sample's id; removes them from `files`."""
    faults = []
    for stem in list(files):
        if _UNDECODED.search(stem):
            problem = "its name is not UTF-8"
        elif any(character in stem for character in "\t\n\r"):
            problem = "its name has a tab or line break"
        else:
            continue
        faults += [ShardError.at(_printable(path), f"{problem}; rename the file or its folder") for path in files.pop(stem)]
    return faults


def _printable(path: Path) -> str:
    """The path as one line of valid text, with escapes such as \\xff for bytes that are not UTF-8."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _doubled(files: dict[str, list[Path]], what: str) -> list[ShardError]:
    several = {stem: paths for stem, paths in files.items() if len(paths) > 1}
    return [
        ShardError.at(paths[1], f"{len(paths)} {what} of the same name ({', '.join(path.name for path in paths)}); keep one of them")
        for paths in several.values()
    ]


def _differing_in_case(lone_photos: dict[str, Path], lone_maps: dict[str, Path]) -> list[ShardError]:
    """Faults of partners that only capitals or the writing of accents keep apart; removes them from both dicts."""
    same = {_folded(stem): stem for stem in lone_maps}
    faults = []
    for stem in [stem for stem in lone_photos if _folded(stem) in same]:
        other = same.pop(_folded(stem), None)
        if other is not None:
            photo, label_map = lone_photos.pop(stem), lone_maps.pop(other)
            accents = unicodedata.normalize("NFC", stem) == unicodedata.normalize("NFC", other)
            how = "in how accents are stored only (Unicode NFC and NFD, as macOS writes)" if accents else "in capitals only"
            faults.append(ShardError.at(label_map, f"its name and that of {photo} differ {how}; rename one of the two"))
    return faults


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).lower()


def _without_label_map(lone_photos: dict[str, Path], label_maps, label_suffixes, ending: str) -> list[ShardError]:
    """Faults of photos without label map; one stored as JPEG is named, for that is a frequent mistake."""
    jpegs = files_by_stem(label_maps, (".jpg", ".jpeg"), ending) if lone_photos else {}
    faults = []
    for stem, path in lone_photos.items():
        if stem in jpegs:
            problem = "a JPEG cannot be a label map, for its compression changes class ids; store it as PNG"
            faults.append(ShardError.at(jpegs[stem][0], problem))
        else:
            expected = f"{Path(label_maps) / stem}{ending}{label_suffixes[0]}"
            faults.append(ShardError.at(path, f"photo without a label map; expected {expected}, or remove the photo"))
    return faults
