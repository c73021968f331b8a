"""Images with one class each: folders of classes, and tables (Parquet, saved datasets) with a label column."""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

from ofaseg.data.codec import PHOTO_SUFFIXES
from ofaseg.data.folder import split_names, stored_name
from ofaseg.data.image_text_hf import IMAGE_NAMES, is_saved
from ofaseg.data.rows import ShardError
from ofaseg.data.shards import find_split

LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "target", "category")
ACCEPTED = "a folder <split>/<class>/*.jpg, <split>*.parquet with an image and a label column, or a folder of Dataset.save_to_disk"


@dataclass(frozen=True)
class LabelledImages:
    """Images by number.

    Attributes:
        labels: class name or number of each image.
        read: number -> bytes of the image file; raises OSError or ShardError.
        location: number -> where it lies, for messages.
    """

    labels: Sequence
    read: Callable[[int], bytes]
    location: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)


def open_labelled(root, split: str, image_column: str = "", label_column: str = "") -> LabelledImages:
    """The images of a split, in a fixed order.

    Args:
        root: one of `ACCEPTED`.
        split: valid, val and validation stand in for each other.
        image_column, label_column: of tables; "" finds them by name.

    Raises:
        ShardError: nothing usable lies there, or a column cannot be told; the message says what there is.
    """
    root = Path(root)
    folder = next((root / name for name in split_names(split) if (root / name).is_dir()), None)
    if is_saved(root) or stored_name(root, split) or stored_name(root / "data", split):
        return _table(_load(root, split), str(root), image_column, label_column)
    if folder is None:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:20]) if root.is_dir() else "it is no folder"
        raise ShardError.at(root, f"no images of split {split!r} ({there}); give {ACCEPTED}")
    files = [path for path in sorted(folder.glob("*/*")) if path.suffix.lower() in PHOTO_SUFFIXES]
    if not files:
        raise ShardError.at(folder, f"no image one folder below it; give {ACCEPTED}")
    return LabelledImages([path.parent.name for path in files], lambda i: files[i].read_bytes(), lambda i: str(files[i]))


def _load(root: Path, split: str):
    """The table of a split. Raises ShardError."""
    import datasets

    try:
        if not is_saved(root):
            folder = root if stored_name(root, split) else root / "data"
            return datasets.load_dataset("parquet", data_files={"train": find_split(folder, split)}, split="train")
        loaded = datasets.load_from_disk(str(root))
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise ShardError.at(root, f"datasets cannot read it ({error}); copy or save it again") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    name = next((name for name in split_names(split) if name in loaded), None)
    if name is None:
        raise ShardError.at(root, f"no split {split!r}; it has {', '.join(loaded)}. Name one of these")
    return loaded[name]


def _table(table, where: str, image_column: str, label_column: str) -> LabelledImages:
    import datasets

    image = _column(table, IMAGE_NAMES, image_column, "image", where)
    label = _column(table, LABEL_NAMES, label_column, "label", where)
    labels = table.select_columns([label])[:][label]
    names = getattr(table.features[label], "names", None)
    missing = next((i for i, value in enumerate(labels) if value is None or (names and not 0 <= value < len(names))), None)
    if missing is not None:
        raise ShardError.at(where, f"the label is {labels[missing]}; leave rows without a label out", missing, label)
    images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(i: int) -> bytes:
        value = images[i][image] or {}
        if not value.get("bytes") and not value.get("path"):
            raise ShardError.at(where, "no image; leave the row out", i, image)
        return value.get("bytes") or Path(value["path"]).read_bytes()

    return LabelledImages([names[value] for value in labels] if names else labels, read, lambda i: f"{where}, row {i}")


def _column(table, known: Sequence[str], given: str, what: str, where: str) -> str:
    there = {name.lower(): name for name in table.column_names}
    found = next((there[name] for name in ((given.lower(),) if given else known) if name in there), None)
    if found is None:
        wanted = f"no column {given!r}" if given else f"cannot tell which column holds the {what}"
        raise ShardError.at(where, f"{wanted}; it has {', '.join(table.column_names)}. Name one by --{what}-column")
    return found
