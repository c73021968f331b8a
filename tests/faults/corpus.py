"""A corpus of faults as users meet them: each a small function that breaks something clean, with what has to come of it.

`FAULTS` is filled by the modules beside this one. What a fault breaks is its group:

=========== ====================================================================================================================
group       what the function gets and returns
=========== ====================================================================================================================
row         a row's columns (see `ofaseg.data.rows`) -> the broken columns; written in both formats
line        a line of a TSV without its line break -> the broken line
shards      a clean data folder (TSV, split train, with hashes), changed in place
folder      a clean raw folder (images/, labels/, classes.txt), changed in place
path        an empty folder -> the path to check (class lists, checkpoints, runs)
=========== ====================================================================================================================
"""

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofaseg.data import codec
from ofaseg.data.rows import COLUMNS
from ofaseg.data.shard_writer import PARTS
from ofaseg.data.shards import ShardWriter
from ofaseg.data.tsv import TsvPart, TsvShard, index_path
from ofaseg.utils.run_lengths import text_of_mask
from ofaseg.vocabulary import ClassVocabulary
from tests.toy import NAMES, toy_label_map, toy_photo

VOCABULARY = ClassVocabulary(NAMES, source="faults")
HEIGHT, WIDTH = 24, 32
NUM_ROWS = 8
ROW = 3
"""The row that is broken."""
ANY_ROW = -1
"""For files whose lines are written by another tool."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: of the kind.
        group: what is broken, see this module's table.
        change: the function that breaks it.
        error: words of the error that reading raises, cause and cure; empty when it is read all the same.
        code: the doctor's code; "" when it must not find anything.
        column, row, file: place in the error and the finding (`file` is how its path ends); row None for none.
        also: further codes that the doctor may report.
        formats: of a row fault.
        slow: whether it takes long to make.
    """

    name: str
    group: str
    change: Callable
    error: tuple[str, ...]
    code: str
    column: str = ""
    row: int | None = None
    file: str = ""
    also: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("tsv", "parquet")
    slow: bool = False


FAULTS: list[Fault] = []


def fault(group: str, code: str, *error: str, **options):
    """Registers the decorated function as a kind of fault; its name is the kind's."""

    def register(change):
        if group in ("row", "line"):
            options.setdefault("row", ROW)
        FAULTS.append(Fault(change.__name__, group, change, error, code, **options))
        return change

    return register


def clean_row(k: int, height: int = HEIGHT, width: int = WIDTH) -> dict:
    """Row `k` of a clean split, with every column; the caller's own, to be changed at will."""
    return copy.deepcopy(_drawn_row(k, height, width))


@functools.cache
def _drawn_row(k: int, height: int, width: int) -> dict:
    rng = np.random.default_rng((7, k))
    label_map = toy_label_map(rng, height, width)
    label_map[-2:, -3:] = [0, 1, 2]  # every class occurs in every map
    segment_map = np.ones((height, width), np.int32)
    segment_map[:, width // 2 :] = 2
    halves = [[0.0, 0.0, width / 2, height], [width / 2, 0.0, width, height]]
    area = height * width // 2
    return {
        "image": codec.encode_image(toy_photo(rng, label_map), "jpeg"),
        "label_map": codec.encode_label_map(label_map, VOCABULARY),
        "id": f"sample {k}",
        "captions": ["coloured blocks"],
        "boxes": [{"box": [2.0, 2.0, 10.0, 12.0], "text": "a block", "class_id": 1}],
        "segment_map": codec.encode_segment_map(segment_map),
        "segments": [{"id": n + 1, "class_id": n, "is_crowd": False, "area": area, "box": box} for n, box in enumerate(halves)],
        "instances": [{"id": 9, "class_id": 1, "is_crowd": False, "area": area, "box": halves[0], "mask": text_of_mask(segment_map == 1)}],
    }


def write_unchecked(root: Path, rows: list[dict], format: str = "tsv", split: str = "train", vocabulary=VOCABULARY) -> Path:
    """Writes rows as another tool might: nothing is checked, vocabulary.json holds no hashes. Returns the shard file."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{split}.{format}"
    part = PARTS[format](path, COLUMNS)
    for row in rows:
        part.write(row)
    part.close()
    write_vocabulary(root, vocabulary.to_json() | {"columns": list(COLUMNS), "format": format})
    return path


def write_vocabulary(root: Path, content) -> None:
    (root / "vocabulary.json").write_text(json.dumps(content), encoding="utf-8")


def edit_vocabulary(root: Path, **changes) -> None:
    """Replaces entries of vocabulary.json; None removes one."""
    content = json.loads((root / "vocabulary.json").read_text(encoding="utf-8")) | changes
    write_vocabulary(root, {key: value for key, value in content.items() if value is not None})


def write_clean_shards(root: Path, format: str = "tsv", split: str = "train", first: int = 0, rows_per_shard: int = 5000) -> Path:
    """A clean split from row `first` on, as the writer makes it; returns the folder."""
    with ShardWriter(root, split, VOCABULARY, COLUMNS, format, rows_per_shard) as writer:
        for k in range(first, first + NUM_ROWS):
            writer.write(clean_row(k))
    return root


def write_clean_folder(root: Path, splits=("train",)) -> Path:
    """A clean raw folder: images/<split>/<n>.jpg, labels/<split>/<n>.png, classes.txt; returns it."""
    for s, split in enumerate(splits):
        for k in range(4):
            row = clean_row(100 * s + k)
            for folder, column, suffix in (("images", "image", "jpg"), ("labels", "label_map", "png")):
                path = root / folder / split / f"{split}_{k}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(row[column])
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return root


def as_line(row: dict, scratch: Path) -> bytes:
    """A row as a line of a TSV, without its line break; `scratch` is a file that may be used."""
    part = TsvPart(scratch, COLUMNS)
    part.write(row)
    part.close()
    line = scratch.read_bytes().rstrip(b"\n")
    scratch.unlink()
    return line


def change_rows(path: Path, kinds: dict[int, Fault]) -> None:
    """Breaks rows of a TSV of `clean_row`s of all columns: row -> kind of fault, of group row or line."""
    lines = path.read_bytes().split(b"\n")
    for row, kind in kinds.items():
        if kind.group == "line":
            lines[row] = kind.change(lines[row])
            continue
        fields = kind.change(TsvShard(path, {name: k for k, name in enumerate(COLUMNS)}, len(COLUMNS)).read(row, COLUMNS))
        lines[row] = as_line(fields, path.with_suffix(".line"))
    path.write_bytes(b"\n".join(lines))
    index_path(path).unlink(missing_ok=True)


def make(kind: Fault, root: Path, format: str = "tsv") -> Path:
    """Makes a fault below the folder `root`; returns the path that the doctor is given."""
    if kind.group == "row":
        rows = [clean_row(k) for k in range(NUM_ROWS)]
        rows[ROW] = kind.change(rows[ROW])
        write_unchecked(root, rows, format)
    elif kind.group == "line":
        change_rows(write_unchecked(root, [clean_row(k) for k in range(NUM_ROWS)]), {ROW: kind})
    elif kind.group == "shards":
        kind.change(write_clean_shards(root))
    elif kind.group == "folder":
        kind.change(write_clean_folder(root))
    else:
        return Path(kind.change(root))
    return root


def of_group(*groups: str) -> list[Fault]:
    """The faults of some groups, with every module of the corpus imported."""
    from tests.faults import file_faults, folder_faults, row_faults, run_faults  # noqa: F401  they register their faults

    return [kind for kind in FAULTS if kind.group in groups]
