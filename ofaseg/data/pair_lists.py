"""Lists of (photo, class) pairs: the published ones of PASCAL-5i and COCO-20i, and lists of one's own.

Two kinds of files are read:

- text, a line per pair: `<photo id>__<class number>`, as in PASCAL-5i (`2007_000032__01`; numbers from 1);
- JSON, also gzipped: class number from 0 -> list of photos, as in COCO-20i; a photo is its COCO number or its file name.

The COCO-20i lists of the official repositories are pickled files, which are not read, for loading one can run any code.
"""

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

from ofaseg.data.folds import benchmark_facts, held_out
from ofaseg.data.rows import ShardError

PUBLISHED = ("official", "hsnet")
"""Whose lists: those of Fusioner's repository, or those of HSNet's, which most papers use. On PASCAL-5i they differ in training."""
_LINE = re.compile(r"^(?P<photo>\S+)__(?P<number>\d+)$")
_COCO_NAME = "COCO_{year}_{number:012d}"
_FILES = {
    ("pascal5i", "official", "trn"): ("pascal5i_multiclass_trn/fold{fold}.txt", "pascal/trn/fold{fold}.txt", "trn/fold{fold}.txt"),
    ("pascal5i", "hsnet", "trn"): ("pascal5i/trn/fold{fold}.txt", "pascal/trn/fold{fold}.txt", "trn/fold{fold}.txt"),
    ("pascal5i", None, "val"): ("pascal5i/val/fold{fold}.txt", "pascal/val/fold{fold}.txt", "val/fold{fold}.txt"),
}
_COCO_FOLDERS = ("coco20i/{side}_fold{fold}", "coco/{side}/fold{fold}", "{side}_fold{fold}", "{side}/fold{fold}")


class PairList(NamedTuple):
    """Pairs of a list in its order, without repetitions.

    Attributes:
        pairs: (photo id, class number from 0).
        source: the files, for messages.
    """

    pairs: list[tuple[str, int]]
    source: str


def published_pairs(benchmark: str, whose: str, lists, training: bool, fold: int) -> PairList:
    """The published pairs of a fold: of base classes for training, of the held-out ones for testing.

    Training pairs of PASCAL-5i are the lists of the three other folds, all lines of them (the official reader loses the last line
    of each). The number of pairs in each file has to be the published one, so that lists of two origins are never mixed up.

    Args:
        whose: one of `PUBLISHED`.
        lists: folder of the lists: `splits` of an official repository (COCO lists as JSON), or one that holds pascal5i/, coco20i/.

    Raises:
        FoldError: an unknown benchmark or fold.
        ShardError: a file is missing, cannot be read, or has another number of pairs than the published one.
    """
    side, held = "trn" if training else "val", held_out(benchmark, fold)
    folds = [fold]
    if training and benchmark == "pascal5i":
        folds = [other for other in range(benchmark_facts(benchmark)["folds"]) if other != fold]
    pairs: dict[tuple[str, int], None] = {}
    paths = []
    for number in folds:
        path = _find(benchmark, whose, lists, side, number)
        found = read_pair_file(path, benchmark, coco_year(training))
        _check_count(path, len(found), benchmark, whose, side, number)
        pairs.update(dict.fromkeys(found))
        paths.append(str(path))
    wrong = next(((photo, k) for photo, k in pairs if (k in held) == training), None)
    if wrong is not None:
        problem = f"class {wrong[1]} of {wrong[0]!r} is {'held out' if training else 'not held out'} in fold {fold}"
        raise ShardError.at(paths[0], f"{problem}; is it the list of another fold, or of {'testing' if training else 'training'}?")
    return PairList(list(pairs), ", ".join(paths))


def coco_year(training: bool) -> str:
    """The photos that the lists of COCO-20i are of: train2014 for training, val2014 for testing."""
    return "train2014" if training else "val2014"


def _find(benchmark: str, whose: str, lists, side: str, fold: int) -> Path:
    if not str(lists) or not Path(lists).is_dir():
        raise ShardError.at(lists or "lists", f"no such folder of {whose} lists of pairs; give it, or take the pairs from the label maps")
    if benchmark == "coco20i":
        names = [f"{name}{ending}" for name in _COCO_FOLDERS for ending in (".json.gz", ".json")]
    else:
        names = _FILES[benchmark, None if side == "val" else whose, side]
    candidates = [Path(lists) / name.format(side=side, fold=fold) for name in names]
    path = next((path for path in candidates if path.is_file()), None)
    if path is not None:
        return path
    pickled = next((path.with_suffix(".pkl") for path in candidates if path.with_suffix(".pkl").is_file()), None)
    if pickled is not None:
        cure = "save the dictionary as JSON under the same name, with .json"
        raise ShardError.at(pickled, f"a pickled list, which is not read because it can run code; {cure}")
    raise ShardError.at(lists, f"no {whose} list of {benchmark}, fold {fold}; expected {' or '.join(map(str, candidates[:3]))}")


def _check_count(path: Path, found: int, benchmark: str, whose: str, side: str, fold: int) -> None:
    counts = {origin: sizes[side][fold] for origin, sizes in benchmark_facts(benchmark)["pairs"].items()}
    if found == counts[whose]:
        return
    other = next((origin for origin, count in counts.items() if count == found), None)
    cure = f"they are those of the {other} list; choose {other!r}" if other else "copy the list again, or read it as a list of your own"
    raise ShardError.at(path, f"{found} pairs, the {whose} list of {benchmark} has {counts[whose]}: {cure}")


def read_pair_file(path, benchmark: str = "", year: str = "") -> list[tuple[str, int]]:
    """The pairs of one file in its order, without repetitions, as (photo id, class number).

    Args:
        benchmark: numbers of text files count from 1 in "pascal5i", and as they stand elsewhere.
        year: train2014 or val2014: a photo that is a number becomes COCO_<year>_<12 digits>; without it, its digits.

    Raises:
        ShardError: the file is missing, of another form, or empty.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        text = data.decode("utf-8")
    except FileNotFoundError as error:
        raise ShardError.at(path, "no such list of pairs; check the path") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ShardError.at(path, f"cannot be read as text or JSON ({error}); copy the list again") from error
    if text.lstrip().startswith("{"):
        pairs = _pairs_of_json(path, text, year)
    else:
        pairs = _pairs_of_lines(path, text, 1 if benchmark == "pascal5i" else 0)
    if not pairs:
        raise ShardError.at(path, "no pair in the list; copy it again")
    return list(dict.fromkeys(pairs))


def _pairs_of_lines(path: Path, text: str, first: int) -> list[tuple[str, int]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.match(line.strip())
        if match is None or int(match["number"]) < first:
            raise ShardError.at(path, f"line {number} is {line[:60]!r}, not <photo id>__<class number from {first}>; correct it")
        pairs.append((match["photo"], int(match["number"]) - first))
    return pairs


def _pairs_of_json(path: Path, text: str, year: str) -> list[tuple[str, int]]:
    try:
        lists = json.loads(text)
    except ValueError as error:
        raise ShardError.at(path, f"not valid JSON ({error}); copy the list again") from error
    pairs = []
    for key, photos in lists.items():
        if not key.isdecimal() or not isinstance(photos, list):
            raise ShardError.at(path, f"entry {key[:40]!r} is not a class number with a list of photos; correct it")
        pairs += [(_photo_id(path, photo, year), int(key)) for photo in photos]
    return pairs


def _photo_id(path: Path, photo, year: str) -> str:
    """A photo's id without folder and suffix."""
    if isinstance(photo, int) and not isinstance(photo, bool) and photo >= 0:
        return _COCO_NAME.format(year=year, number=photo) if year else str(photo)
    if isinstance(photo, str) and Path(photo).stem:
        return Path(photo).stem
    raise ShardError.at(path, f"photo {photo!r} is neither a number nor a file name; correct it")


def rows_of_photos(ids: Sequence[str], photos: Sequence[str]) -> list[Optional[int]]:
    """The row of each photo among the row `ids`, None where there is none; photos of COCO are found by their numbers too.

    (COCO's photos bear the same numbers in 2014 and 2017, in names with and without a prefix.)
    """
    rows = {name: row for row, name in enumerate(ids) if name}
    numbers: dict[int, int] = {}
    if any(_coco_number(photo) is not None for photo in photos):
        numbers = {number: row for name, row in rows.items() if (number := _coco_number(name)) is not None}
    return [rows[photo] if photo in rows else numbers.get(_coco_number(photo)) for photo in photos]


_COCO_ID = re.compile(r"(?:^|/)(?:COCO_(?:train|val)2014_)?(\d{12})$")


def _coco_number(name: str) -> Optional[int]:
    match = _COCO_ID.search(name)
    return int(match[1]) if match else None
