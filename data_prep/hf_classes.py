"""The class names of a Hugging Face dataset: from files beside it, or from the features that speak of pixels."""

import json
from pathlib import Path
from typing import Optional

from data_prep.label_values import listed_names
from data_prep.source import SourceError


def find_classes(root, features, label_column: str, class_names: str, label_offset: Optional[int]) -> tuple[tuple[str, ...], int]:
    """(class names, label value of the first one). The names are those given, of ROOT/classes.txt, of ROOT/id2label.json, or of
    the features; the first value is `label_offset`, or the first number of id2label.json, or 0.

    Of the features only the ClassLabel inside the label-map column counts, or else the one inside a list, which has an entry per
    segment. A ClassLabel of its own is one class per photo, such as the scene, and its numbers are not those of the pixels.

    Args:
        label_column: name of the column of label maps.
        class_names: the user's file or comma list, "" for none.
        label_offset: the user's label value of the first class, None for none.

    Raises:
        SourceError: none are found, or id2label.json is not {"0": name, ...} or starts at another number than `label_offset`. A
            file that starts at 0 goes with any offset, for it may number classes and not label values.
        VocabularyError: an unusable list.
    """
    given = label_offset or 0
    if class_names:
        return listed_names(class_names), given
    folder = Path(root) if Path(root).is_dir() else Path(root).parent
    if (folder / "classes.txt").is_file():
        return listed_names(str(folder / "classes.txt")), given
    if (folder / "id2label.json").is_file():
        names, first = _id2label(folder / "id2label.json")
        if first and label_offset not in (None, first):
            cure = f"leave out --label-offset {label_offset}, or correct the file"
            raise SourceError(f"{folder / 'id2label.json'}: its first class has the label value {first}; {cure}")
        return names, given or first
    in_label_maps = set(_class_labels(features[label_column], of_pixels=True))
    in_lists = {names for feature in features.values() for names in _class_labels(feature)}
    lists = in_label_maps or in_lists
    if len(lists) == 1:
        return lists.pop(), given
    found = f"its features have {len(lists)} lists of classes" if lists else "none of its features is a ClassLabel of segments or pixels"
    raise SourceError(f"{root}: no class names ({found}); give --class-names, or write {folder / 'classes.txt'}")


def is_list(feature) -> bool:
    """Whether a feature of `datasets` is a list of any kind."""
    return hasattr(feature, "feature") and not isinstance(feature, dict)


def _class_labels(feature, of_pixels: bool = False):
    """The names of each ClassLabel in `feature` that is inside a list, of every one with `of_pixels`."""
    if isinstance(feature, dict):
        for inner in feature.values():
            yield from _class_labels(inner, of_pixels)
    elif is_list(feature):
        yield from _class_labels(feature.feature, of_pixels=True)
    elif of_pixels and getattr(feature, "names", None) and hasattr(feature, "int2str"):
        yield tuple(feature.names)


def _id2label(path: Path) -> tuple[tuple[str, ...], int]:
    """(names, number of the first one)."""
    try:
        names = {int(key): str(name) for key, name in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise SourceError(f'{path}: not a JSON object {{"0": name, ...}} ({error}); correct it, or give --class-names') from error
    first = min(names, default=0)
    if sorted(names) != list(range(first, first + len(names))):
        raise SourceError(f"{path}: the numbers are not consecutive; correct it, or give --class-names")
    return tuple(names[k] for k in sorted(names)), first
