"""Hugging Face `datasets` with an image column and a label-map column, from disk.

    ROOT        a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote
    ROOT        a Parquet file, or a folder of them: [data/]<split>*.parquet or [<name>/]<split>/*.parquet, as on the Hub
    ROOT        a folder that `datasets.load_dataset("imagefolder", data_dir=ROOT)` reads (metadata.csv or .jsonl with the files)

A dataset of the Hub is fetched once with
`python -c "from datasets import load_dataset; load_dataset('OWNER/NAME').save_to_disk('ROOT')"`. No code of a dataset is run.

The columns are found by their type and name (`--image-column`, `--label-column`, `--id-column`). Class names come from
`--class-names`, from ROOT/classes.txt or ROOT/id2label.json, or from the ClassLabel inside the label-map column, or else inside
a list (one entry per segment); a ClassLabel per photo names scenes, not pixels. Photos and label maps keep their bytes where the
dataset has bytes. `--label-offset` and `--ignore` say what the label values mean; an id2label.json that starts at 1 says the offset.
"""

import argparse
from bisect import bisect_right
from pathlib import Path
from typing import Optional

import numpy as np

from data_prep import hf_files
from data_prep.hf_classes import find_classes, is_list
from data_prep.label_values import add_label_arguments, class_ids, label_map_to_store, mark_novel, user_vocabulary
from data_prep.paired import kept_or_png
from data_prep.source import Source, SourceError
from ofaseg.vocabulary import ClassVocabulary

IMAGE_NAMES = ("image", "img", "photo", "picture", "pixel_values", "jpg", "image_bytes")
LABEL_NAMES = (
    "label_map", "label", "labels", "annotation", "annotations", "mask", "masks", "segmentation", "segmentation_mask",
    "semantic_segmentation", "segmentation_map", "semantic_mask", "sem_seg", "gt", "label_image", "seg",
)  # fmt: skip
ROW_NUMBERS = "row"
"""Of `--id-column`: the samples are called by their row numbers."""
ID_NAMES = ("id", "image_id", "file_name", "filename", "name", "stem")


def add_arguments(parser) -> None:
    """Options of this dataset."""
    add_label_arguments(parser)
    parser.set_defaults(label_offset=None)  # tells 0 from nothing, for id2label.json may start at another number
    parser.add_argument("--image-column", help="column of the photos")
    parser.add_argument("--label-column", help="column of the label maps")
    id_help = "column of the sample names, or row: their numbers (default: a column called id, image_id ..., else row)"
    parser.add_argument("--id-column", help=id_help)


def list_splits(root, args: argparse.Namespace) -> list[str]:
    """The splits of the dataset. Raises as `hf_files.load_split`."""
    return hf_files.list_splits(root)


def _holds_files(feature) -> bool:
    """Whether the values of a feature are image files: an Image, plain bytes, or {bytes, path} as Parquet files hold them."""
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature and _holds_files(feature["bytes"])
    return isinstance(feature, datasets.Image) or (isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary"))


def _holds_arrays(feature) -> bool:
    import datasets

    return isinstance(feature, datasets.Array2D) or (is_list(feature) and is_list(feature.feature))


def choose_columns(features, image: Optional[str], label: Optional[str]) -> tuple[str, str]:
    """(image column, label column) of a dataset's features; given names win, others are found by type and name.

    Raises:
        SourceError: a given column is not there, or the choice is not clear; the message lists the columns and types.
    """
    there = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
    for option, name in (("--image-column", image), ("--label-column", label)):
        if name is not None and name not in features:
            raise SourceError(f"{option} {name!r} is not a column; the dataset has {there}")
    files = [name for name, feature in features.items() if _holds_files(feature)]
    maps = files + [name for name, feature in features.items() if _holds_arrays(feature)]
    label = label or _named(maps, LABEL_NAMES, image)
    image = image or _named(files, IMAGE_NAMES, label) or _only(files, label)
    label = label or _only(maps, image)
    if image is None or label is None:
        missing = "--image-column" if image is None else "--label-column"
        raise SourceError(f"cannot tell which column it is: give {missing}; the dataset has {there}")
    if image == label:
        raise SourceError(f"the image and the label column are both {image!r}; give --image-column and --label-column")
    return image, label


def _named(names: list[str], wanted: tuple[str, ...], taken: Optional[str]) -> Optional[str]:
    """The one name that is among `wanted`, None when there is none or more."""
    return _only([name for name in names if name.lower() in wanted], taken)


def _only(names: list[str], taken: Optional[str]) -> Optional[str]:
    """The one name beside `taken`, None when there is none or more."""
    names = [name for name in names if name != taken]
    return names[0] if len(names) == 1 else None


def _type_name(feature) -> str:
    kind = "struct" if isinstance(feature, dict) else type(feature).__name__
    return feature.dtype if kind == "Value" else kind


class HfSource(Source):
    """The samples of one split. The dataset is opened in each process that reads.

    Args:
        columns: names of the image and label columns.
        id_column: or None for row numbers.
        ignore: label values without class, beside the vocabulary's.
    """

    def __init__(self, root, split: str, vocabulary: ClassVocabulary, columns: tuple[str, str], id_column: Optional[str], ignore=()):
        self.root, self.split, self.vocabulary = str(root), split, vocabulary
        self.image_column, self.label_column = columns
        self.id_column, self.ignore = id_column, tuple(ignore)
        self._dataset = None
        self._files, self._ends = (), ()
        self._length = len(self._opened())

    def _opened(self):
        """The dataset with undecoded files."""
        if self._dataset is None:
            import datasets

            dataset, self._files, self._ends = hf_files.load_split(self.root, self.split)
            for column in (self.image_column, self.label_column):
                if _holds_files(dataset.features[column]):
                    dataset = dataset.cast_column(column, datasets.Image(decode=False))
            names = [self.image_column, self.label_column, *([self.id_column] if self.id_column else [])]
            self._dataset = dataset.select_columns(names)
        return self._dataset

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_dataset": None}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict:
        """Raises SourceError or FileNotFoundError for a row that cannot be used."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} is outside 0..{len(self) - 1}")
        row = self._opened()[i]
        image = kept_or_png(self._file(row[self.image_column], i, self.image_column), self._place(i, self.image_column))
        where, label = self._place(i, self.label_column), row[self.label_column]
        if label is None or isinstance(label, dict):
            label_map = label_map_to_store(self._file(label, i, self.label_column), self.vocabulary, self.ignore, where)
        else:
            label_map = class_ids(_array(label, where), self.vocabulary, self.ignore, where)
        return {"id": self._id(row, i), "image": image, "label_map": label_map}

    def _id(self, row: dict, i: int) -> str:
        if self.id_column is None:
            return f"{self.split}-{i:08d}"
        if row[self.id_column] is None:
            raise SourceError(f"{self._place(i, self.id_column)}: empty; choose another --id-column, or remove the row")
        return str(row[self.id_column])

    def _place(self, i: int, column: str) -> str:
        return f"{self.root}, split {self.split}, row {i}, column {column}"

    def _file(self, value: Optional[dict], i: int, column: str) -> bytes:
        where = self._place(i, column)
        if not value or (value.get("bytes") is None and not value.get("path")):
            raise SourceError(f"{where}: empty; remove the row with Dataset.filter and save the dataset again")
        if value.get("bytes") is not None:
            return value["bytes"]
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            problem = f"{value['path']} cannot be read ({error.strerror}); save the dataset with its files"
            raise FileNotFoundError(f"{where}: {problem}") from error

    def name(self, i: int) -> str:
        return f"{self.root}, split {self.split}, row {i}"

    def files(self, i: int) -> tuple[str, ...]:
        """The Parquet or Arrow file of the row; of an imagefolder its photo and label map, and the lists of the folder."""
        if self._files:
            whole = self._ends[-1] == len(self)  # else rows were picked from the files, and which is not known
            return (self._files[bisect_right(self._ends, i)],) if whole else self._files
        row = self._opened()[i]
        cells = (row[column] for column in (self.image_column, self.label_column))
        paths = [cell["path"] for cell in cells if isinstance(cell, dict) and cell.get("path")]
        lists = (path for level in ("metadata.*", "*/metadata.*") for path in sorted(Path(self.root).glob(level)))
        return (*paths, *map(str, lists))


def _array(value, where: str) -> np.ndarray:
    """(H, W) integers from nested lists. Raises SourceError for another shape."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise SourceError(f"{where}: rows of different length; store a label map as (H, W) integers") from error
    if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
        raise SourceError(f"{where}: shape {array.shape} {array.dtype}; store a label map as (H, W) integers")
    return array


def open_split(root, split: str, args: argparse.Namespace) -> HfSource:
    """The samples of a split. Raises as `hf_files.load_split`, `choose_columns`, `find_classes` and `choose_id_column`."""
    dataset = hf_files.load_split(root, split).dataset
    columns = choose_columns(dataset.features, args.image_column, args.label_column)
    names, first = find_classes(root, dataset.features, columns[1], args.class_names, args.label_offset)
    vocabulary = user_vocabulary(names, first, args.ignore, source=f"datasets, {Path(root).resolve().name}")
    id_column = choose_id_column(dataset, args.id_column, f"{root}, split {split}")
    return HfSource(root, split, mark_novel(vocabulary, args.novel), columns, id_column, args.ignore or ())


def choose_id_column(dataset, given: Optional[str], where: str) -> Optional[str]:
    """The column of the sample names, None for row numbers.

    Args:
        given: the user's choice, `ROW_NUMBERS` for row numbers, None for none.
        where: the dataset and split, for messages.

    Raises:
        SourceError: it is no column of texts or numbers, or two rows have one name.
    """
    if given == ROW_NUMBERS:
        return None
    features = dataset.features
    column = given or next((name for name in ID_NAMES if _is_id(features.get(name))), None)
    if column is None:
        return None
    if not _is_id(features.get(column)):
        raise SourceError(f"--id-column {column!r} is not a column of texts or numbers; the dataset has {', '.join(features)}")
    seen: dict[str, int] = {}
    for i, value in enumerate(dataset.select_columns([column])[column]):
        if value is not None and (first := seen.setdefault(str(value), i)) != i:
            cure = f"give --id-column {ROW_NUMBERS} for row numbers, or another column"
            raise SourceError(f"{where}, column {column}: rows {first} and {i} are both {str(value)!r}; {cure}")
    return column


def _is_id(feature) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string", "int32", "int64") and not hasattr(feature, "names")
