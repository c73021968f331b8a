"""Where photos with captions come from: one interface over shards, Parquet, CSV lists with image folders, and Hugging Face datasets.

`open_image_text` chooses by what lies at a path.
"""

import bisect
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ofaseg.data.folder import split_names, stored_name
from ofaseg.data.image_text_csv import CsvImageText
from ofaseg.data.image_text_hf import HfImageText, is_saved
from ofaseg.data.image_text_source import USUAL_COLUMNS, ImageTextColumns, ImageTextSource, usable_captions
from ofaseg.data.shards import ShardError, ShardReader, find_split, list_splits

__all__ = ["CsvImageText", "HfImageText", "ImageTextSource", "JoinedImageText", "ShardImageText", "open_image_text"]

ACCEPTED = (
    "a folder that data_prep/prepare.py wrote (column captions), <name>_anno.csv beside the folder of its images, "
    "LIST.csv[:IMAGE_FOLDER] with the columns image and caption, a Parquet file or folder with an image and a caption column, "
    "or a folder of Dataset.save_to_disk"
)


class ShardImageText(ImageTextSource):
    """The rows of shards with the column captions; the image id is the row's id.

    Raises:
        ShardError: the shards have no captions.
    """

    def __init__(self, reader: ShardReader):
        missing = [name for name in ("image", "captions", "id") if name not in reader.columns]
        if missing:
            problem = f"the shards have the columns {', '.join(reader.columns)}; image-text data need image, captions and id"
            raise ShardError.at(reader.paths[0], f"{problem}: write them from a dataset with captions", column=missing[0])
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int) -> dict:
        row = self.reader.read(i, ("image", "captions", "id"))
        captions, _ = usable_captions(row["captions"], (), *self.reader.locate(i), "captions")
        return {"image": row["image"], "captions": captions, "image_id": row["id"], "caption_ids": ()}

    def location(self, i: int, column: str = "") -> str:
        return self.reader.location(i, column)


class JoinedImageText(ImageTextSource):
    """Several sources one after the other; `sizes` tells where each ends. Ids of different sources are never the same.

    The ids of the first stay as they are, texts with the source's number before them are those of the others; negative ones, which
    mark rows that do not count, stay.
    """

    def __init__(self, sources: Sequence[ImageTextSource]):
        self.sources = list(sources)
        self.missing = sum(source.missing for source in self.sources)
        self.apart = any(source.apart for source in self.sources)
        self._starts = [0]
        for source in self.sources:
            self._starts.append(self._starts[-1] + len(source))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(size for source in self.sources for size in source.sizes)

    def __len__(self) -> int:
        return self._starts[-1]

    def _locate(self, i: int) -> tuple[ImageTextSource, int]:
        k = bisect.bisect_right(self._starts, self.checked_index(i)) - 1
        return self.sources[k], int(i) - self._starts[k]

    def __getitem__(self, i: int) -> dict:
        source, inside = self._locate(i)
        row = source[inside]
        image_id = row["image_id"]
        if source is self.sources[0] or (isinstance(image_id, int) and image_id < 0):
            return row
        return row | {"image_id": f"{self.sources.index(source)}:{image_id}"}

    def location(self, i: int, column: str = "") -> str:
        source, inside = self._locate(i)
        return source.location(inside, column)


def open_image_text(spec: str, split: str, columns: ImageTextColumns = USUAL_COLUMNS) -> ImageTextSource:
    """The photos with captions of a split.

    Args:
        spec: a place, or several separated by commas, which are joined. Each is one of `ACCEPTED`.
        split: which part of a folder; valid, val and validation stand in for each other. Files are one split.
        columns: of lists, Parquet files and saved datasets with other names than usual; shards have theirs.

    Raises:
        ShardError: nothing usable lies there (the message says what is accepted), or columns are named and all places are shards.
    """
    places = [spec] if os.path.exists(spec) else [place.strip() for place in spec.split(",") if place.strip()]
    if not places:
        raise ShardError(f"no image-text data named; give {ACCEPTED}")
    sources = [_open_place(place, split, columns) for place in places]
    if columns != USUAL_COLUMNS and all(isinstance(source, ShardImageText) for source in sources):
        raise ShardError.at(spec, "shards have the columns image, captions and id, others cannot be named; leave the options out")
    return sources[0] if len(sources) == 1 else JoinedImageText(sources)


def _open_place(place: str, split: str, columns: ImageTextColumns) -> ImageTextSource:
    path, folder = (place, "") if os.path.exists(place) else (place.partition(":")[0], place.partition(":")[2])
    if path.endswith(".csv") and os.path.isfile(path):
        return CsvImageText(path, folder or _images_of(Path(path)), columns)
    if folder or not os.path.exists(path):
        raise ShardError.at(path if folder else place, f"no such file or folder; give {ACCEPTED}")
    if os.path.isfile(path):
        if path.endswith(".tsv") or (path.endswith(".parquet") and _are_our_shards([path])):
            return ShardImageText(ShardReader([path]))
        if path.endswith(".parquet"):
            return HfImageText([path], split, columns)
        raise ShardError.at(path, f"not an image-text file; give {ACCEPTED}")
    return _open_folder(Path(path), split, columns)


def _open_folder(root: Path, split: str, columns: ImageTextColumns) -> ImageTextSource:
    if is_saved(root):
        return HfImageText(root, split, columns)
    for name in split_names(split):
        if (root / f"{name}_anno.csv").is_file():
            return CsvImageText(root / f"{name}_anno.csv", _images_of(root / f"{name}_anno.csv"), columns)
    for folder in (root, root / "data"):  # the Hub keeps the files of a dataset in data/
        if stored_name(folder, split) is None:
            continue
        paths = find_split(folder, split)
        if (folder / "vocabulary.json").is_file() or _are_our_shards(paths):
            return ShardImageText(ShardReader.for_split(folder, split))
        return HfImageText(paths, split, columns)
    there = [*list_splits(root), *(path.name for path in sorted(root.glob("*_anno.csv")))]
    found = f"the folder has {', '.join(there)}" if there else "the folder has neither shards, nor lists, nor a saved dataset"
    raise ShardError.at(root, f"no image-text data of split {split!r}; {found}. Give {ACCEPTED}")


def _images_of(csv_file: Path) -> Path:
    """The folder of a list's images: train/ beside train_anno.csv, else the folder of the list."""
    name = csv_file.stem.removesuffix("_anno")
    return csv_file.parent / name if csv_file.stem.endswith("_anno") and (csv_file.parent / name).is_dir() else csv_file.parent


def _are_our_shards(paths: Sequence[str]) -> bool:
    """Whether files are TSV, or Parquet with the columns that shards have."""
    try:
        schemas = [pq.read_schema(path) for path in paths if path.endswith(".parquet")]
    except (OSError, pa.ArrowException):
        return True  # damaged: the reader of shards says how
    return all({"image", "id", "captions"} <= set(schema.names) and _is_list_of_texts(schema.field("captions").type) for schema in schemas)


def _is_list_of_texts(found: pa.DataType) -> bool:
    return pa.types.is_list(found) and pa.types.is_string(found.value_type)
