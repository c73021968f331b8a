"""Photos with captions in Parquet files and in datasets that `datasets` saved, among them the official retrieval sets.

The official retrieval Parquet files (SimSeg) have one row per caption: imbytes (an encoded image, repeated for each caption),
caption, image_id, id. Their rules hold for every table with an image_id and one caption per row: rows of a negative image_id are
left out, and of the rows of one image_id the last one's image counts.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np

from ofaseg.data.folder import split_names
from ofaseg.data.image_text_source import USUAL_COLUMNS, ImageTextColumns, ImageTextSource, RowGroups, usable_captions
from ofaseg.data.rows import ShardError, place

IMAGE_NAMES = ("image", "imbytes", "img", "image_bytes", "photo", "picture", "jpg", "jpeg", "png", "webp")
CAPTION_NAMES = ("captions", "caption", "texts", "text", "sentences", "sentence", "txt", "alt_text", "alttext", "sentences_raw")
_NUMBERED = re.compile(r"(caption|text|sentence)s?_?\d+")
_ROWS_AT_A_TIME = 256


def is_saved(path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json"))


class HfImageText(ImageTextSource):
    """One entry per image. `datasets` opens the table in each process that reads. Of Parquet files it makes a memory-mapped copy in its
    cache folder ($HF_DATASETS_CACHE), once, since a row inside a large row group cannot be reached otherwise; that takes about three
    times the memory of the largest row group.

    Args:
        data: a folder that `datasets` saved, or Parquet files.
        split: which split of a saved folder with several; valid, val and validation stand in for each other.
        columns: names that win over what type and name tell.

    Raises:
        ShardError: `datasets` cannot read it, there is no such split, or the columns cannot be told.
    """

    def __init__(self, data: Union[str, Path, Sequence[str]], split: str, columns: ImageTextColumns = USUAL_COLUMNS):
        self.files = [] if isinstance(data, str | Path) else [str(path) for path in data]
        self.folder = str(data) if isinstance(data, str | Path) else ""
        self.split = split
        self._images = self._texts = None
        features = self._features()
        self.image_column, self.caption_columns = choose_columns(features, columns, self._where)
        single = len(self.caption_columns) == 1 and _is_text(features[self.caption_columns[0]])
        self.id_column = _id_column(features, columns.image_id, self._where)
        self.apart = single and self.id_column is None
        grouped = self.id_column is not None and (single or bool(columns.image_id))
        chosen = (self.id_column, self.image_column, *self.caption_columns)
        names = [name for name in ("id", "caption_id") if name not in chosen] if single and grouped else []
        self.caption_id_column = next((name for name in names if getattr(features.get(name), "dtype", "") in _ID_TYPES), None)
        self._open()
        self._groups = self._group() if grouped else None
        self._length = len(self._texts) if self._groups is None else len(self._groups)
        if not self._length:
            raise ShardError.at(self._where, "the table has no row; save it again")

    @property
    def _where(self) -> str:
        return self.folder or self.files[0] + (" ..." if len(self.files) > 1 else "")

    def _load(self, columns: Optional[list[str]] = None):
        """The whole split, or some of its columns. Raises ShardError."""
        import datasets

        try:
            if self.files:
                chosen = {"columns": columns, "batch_size": _ROWS_AT_A_TIME}
                return datasets.load_dataset("parquet", data_files={"train": self.files}, split="train", **chosen)
            loaded = datasets.load_from_disk(self.folder)
        except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
            raise ShardError.at(self._where, f"datasets cannot read it ({error}); copy or save it again") from error
        if isinstance(loaded, datasets.DatasetDict):
            name = next((name for name in split_names(self.split) if name in loaded), None)
            if name is None:
                problem = f"no split {self.split!r}; it has {', '.join(loaded)}"
                raise ShardError.at(self._where, f"{problem}. Name one of these, or save it with that split")
            loaded = loaded[name]
        return loaded.select_columns(columns) if columns else loaded

    def _features(self) -> dict:
        """Column name -> type, without reading rows."""
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.files:
            return dict(self._load().features)
        try:
            return dict(datasets.Features.from_arrow_schema(pq.read_schema(self.files[0])))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ShardError.at(self.files[0], f"not a complete Parquet file ({error}); copy or write it again") from error

    def _open(self) -> None:
        """Opens images and texts apart, so that a photo is read once for all its captions."""
        import datasets

        names = [name for name in (self.id_column, self.caption_id_column) if name]
        table = self._load([self.image_column, *self.caption_columns, *names])
        self._texts = table.select_columns([*self.caption_columns, *names])
        self._images = table.select_columns([self.image_column]).cast_column(self.image_column, datasets.Image(decode=False))

    def _group(self) -> RowGroups:
        ids = self._texts.with_format("arrow").select_columns([self.id_column])[:][self.id_column]
        numbers: dict = {}  # of texts; numbers stand for themselves
        keys = np.array([_group_key(value, numbers) for value in ids.to_pylist()], dtype=np.int64)
        return RowGroups(keys, keys >= 0)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_images": None, "_texts": None}

    def __len__(self) -> int:
        return self._length

    def _rows(self, i: int) -> list[int]:
        i = self.checked_index(i)
        return [i] if self._groups is None else self._groups[i].tolist()

    def __getitem__(self, i: int) -> dict:
        if self._texts is None:
            self._open()
        rows = self._rows(i)
        found = [self._texts[row] for row in rows]
        captions = [text for row in found for name in self.caption_columns for text in _texts_of(row[name])]
        caption_ids = [row[self.caption_id_column] for row in found] if self.caption_id_column else ()
        captions, caption_ids = usable_captions(captions, caption_ids, self._where, rows[0], self.caption_columns[0])
        image_id = found[-1][self.id_column] if self.id_column else rows[-1]
        image = self._file(self._images[rows[-1]][self.image_column], rows[-1])
        return {"image": image, "captions": captions, "image_id": image_id, "caption_ids": caption_ids}

    def _file(self, value: Optional[dict], row: int) -> bytes:
        if value and value.get("bytes"):
            return value["bytes"]
        if not value or not value.get("path"):
            raise ShardError.at(self._where, "no image; leave the row out", row, self.image_column)
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            problem = f"{value['path']} cannot be read ({error.strerror or error}); save the table with its images"
            raise ShardError.at(self._where, problem, row, self.image_column) from error

    def location(self, i: int, column: str = "") -> str:
        return place(self._where, self._rows(i)[-1], self.image_column if column == "image" else column)


_ID_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float64", "string", "large_string")
"""Whole numbers stand as float64 in tables that had gaps."""


def _group_key(image_id, numbers: dict) -> int:
    """What rows of one photo share, a whole number; negative for rows that do not count: no id, nan, or a negative one."""
    if image_id is None or (not isinstance(image_id, str) and not image_id >= 0):
        return -1
    if isinstance(image_id, str) or image_id >= 2**62 or image_id != int(image_id):
        return numbers.setdefault(image_id, 2**62 + len(numbers))  # above all numbers that stand for themselves
    return int(image_id)


def _id_column(features: dict, given: str, where: str) -> Optional[str]:
    """The column of image ids, if there is one. Raises ShardError for a given one without whole numbers or texts."""
    name = given or "image_id"
    if getattr(features.get(name), "dtype", "") in _ID_TYPES:
        return name
    if not given:
        return None
    found = f"column {given!r} holds neither whole numbers nor texts" if given in features else f"no column {given!r}"
    raise _unfit(features, found, "--image-id-column", where)


def _unfit(features: dict, problem: str, option: str, where: str) -> ShardError:
    return ShardError.at(where, f"{problem}; it has {', '.join(features)}. Name another one with {option}")


def choose_columns(features: dict, columns: ImageTextColumns, where: str) -> tuple[str, tuple[str, ...]]:
    """(image column, caption columns); given names win, others are found by type and name.

    Several columns named caption_0, caption_1 ... are all taken.

    Raises:
        ShardError: a given column is not there, or the choice is not clear; the message lists the columns.
    """
    there = ", ".join(features)
    _check_named(features, columns, where)
    image = columns.image or _first(IMAGE_NAMES, [name for name, feature in features.items() if _is_image(feature)])
    if image is None:
        raise ShardError.at(where, f"cannot tell which column holds the images; it has {there}. Name it with --image-column")
    if columns.captions:
        return image, tuple(dict.fromkeys(columns.captions))
    texts = [name for name, feature in features.items() if name != image and (_is_text(feature) or _is_texts(feature))]
    numbered = [name for name in texts if _NUMBERED.fullmatch(name.lower())]
    found = _first(CAPTION_NAMES, texts, only_named=True)
    if found is None and not numbered:
        raise ShardError.at(where, f"cannot tell which column holds the captions; it has {there}. Name it with --caption-columns")
    return image, (found,) if found else tuple(numbered)


def _check_named(features: dict, columns: ImageTextColumns, where: str) -> None:
    """Raises ShardError for a named column of photos or captions that is not there, or cannot hold them."""
    for name in (*([columns.image] if columns.image else []), *columns.captions):
        if name not in features:
            raise ShardError.at(where, f"no column {name!r}; it has {', '.join(features)}. Name one of these")
    if columns.image and not (_is_image(features[columns.image]) or _is_text(features[columns.image])):
        raise _unfit(features, f"column {columns.image!r} holds no images", "--image-column", where)
    for name in columns.captions:
        if name == columns.image or not (_is_text(features[name]) or _is_texts(features[name])):
            raise _unfit(features, f"column {name!r} holds no captions", "--caption-columns", where)


def _first(wanted: Sequence[str], names: list[str], only_named: bool = False) -> Optional[str]:
    """The name that stands first in `wanted`; otherwise the only one."""
    named = [name for want in wanted for name in names if name.lower() == want]
    return named[0] if named else names[0] if len(names) == 1 and not only_named else None


def _is_image(feature) -> bool:
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature and _is_image(feature["bytes"])
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_text(feature) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _is_texts(feature) -> bool:
    """Whether it is a list of texts, or of structures with a text under "raw"."""
    inner = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)
    return _is_text(inner) or (isinstance(inner, dict) and _is_text(inner.get("raw")))


def _texts_of(value) -> list:
    if isinstance(value, dict):  # a list of structures, which some versions store as a structure of lists
        value = value.get("raw")
    values = value if isinstance(value, list) else [value]
    return [entry.get("raw") if isinstance(entry, dict) else entry for entry in values]
