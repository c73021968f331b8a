"""What the values of a user's label maps mean: options and checks that converters of free-form data share."""

import argparse
from dataclasses import replace
from typing import Optional, Sequence

import numpy as np

from data_prep.source import SourceError, stored_label_values
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary, VocabularyError, blank_lines, names_a_file, parse_class_names

_DEFAULT_IGNORE = 255


def ignore_values(text: str) -> tuple[int, ...]:
    """Values of pixels without label from "255" or "0,255". Raises argparse.ArgumentTypeError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) <= 65535 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma list of label values 0..65535, such as 0,255")
    return tuple(int(part) for part in parts)


def add_label_arguments(parser, label_offset: int = 0) -> None:
    """`--class-names`, `--label-offset`, `--ignore` and `--novel`."""
    parser.add_argument("--class-names", default="", help="file with one class name per line, or a comma list")
    meaning = f"label value of the first class (default {label_offset}); often 1, where 0 is no label"
    parser.add_argument("--label-offset", type=int, default=label_offset, help=meaning)
    parser.add_argument("--ignore", type=ignore_values, default=None, metavar="V[,V]", help="label values without a class (default 255)")
    add_novel_argument(parser)


def add_novel_argument(parser) -> None:
    """`--novel`."""
    parser.add_argument("--novel", default="", help="classes held out of training: file with one name per line, or a comma list")


def mark_novel(vocabulary: ClassVocabulary, novel: str) -> ClassVocabulary:
    """The vocabulary with the classes of `novel`, a file or a comma list, marked as held out of training; as it is for "".

    Raises:
        VocabularyError: `novel` is no list of names.
        SourceError: a name that is no class, or no class is left to train on.
    """
    if not novel:
        return vocabulary
    names = parse_class_names(novel)
    unknown = [name for name in names if name not in vocabulary.names]
    if unknown:
        raise SourceError(f"--novel {unknown[0]!r} is no class of {vocabulary.source}; the classes are {', '.join(vocabulary.names)}")
    if len(names) == len(vocabulary):
        raise SourceError(f"--novel names all {len(names)} classes of {vocabulary.source}; leave some to train on")
    return replace(vocabulary, novel=tuple(name in names for name in vocabulary.names))


def listed_names(text: str) -> tuple[str, ...]:
    """As `parse_class_names`, for lists whose order says which label value a class has.

    Raises:
        VocabularyError: no list of names, or a blank line in front of a name, which would move it to another value.
    """
    names = parse_class_names(text)
    blank = blank_lines(text) if names_a_file(text) else []
    if blank:
        problem = f"line {blank[0] + 1} is blank, so that the names after it would stand for lower label values than their lines"
        raise VocabularyError(f"{text}: {problem}; remove it, or write the name of that class")
    return names


def user_vocabulary(names: Sequence[str], label_offset: int, ignore: Optional[Sequence[int]], source: str) -> ClassVocabulary:
    """The vocabulary whose stored values are those of the user's label maps, so that their bytes can be kept.

    Raises:
        VocabularyError: no or repeated names, or an ignored value that is also a class.
        SourceError: a negative offset, or a further ignored value that is also a class.
    """
    if label_offset < 0:
        raise SourceError(f"--label-offset {label_offset} is negative; give the label value of the first class, 0 or more")
    last = label_offset + len(names) - 1
    if ignore is None and last >= _DEFAULT_IGNORE:
        problem = f"{len(names)} classes have the label values {label_offset}..{last}, so that 255 is not free for pixels without a label"
        raise SourceError(f"{source}: {problem}; say which value these have: --ignore 65535, or another")
    for value in (ignore or ())[1:]:
        if label_offset <= value <= last:
            classes = f"{len(names)} classes have {label_offset}..{last}"
            raise SourceError(f"--ignore {value} is also the label value of a class ({classes}); leave it out, or correct --label-offset")
    return ClassVocabulary(names=tuple(names), label_offset=label_offset, ignore_label=ignore[0] if ignore else None, source=source)


def class_ids(stored: np.ndarray, vocabulary: ClassVocabulary, ignore: Sequence[int], where: str) -> np.ndarray:
    """(H, W) int32 class ids of (H, W) stored values.

    Args:
        ignore: values without label, beside `vocabulary.ignore_label`.
        where: the file or row and column, for messages.

    Raises:
        SourceError: a value that is neither a class nor ignored; the message says what usually mends it.
    """
    first, last = vocabulary.label_offset, vocabulary.label_offset + len(vocabulary) - 1
    ignored = np.isin(stored, [vocabulary.ignore_label, *ignore])
    bad = ~ignored & ((stored < first) | (stored > last))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        values = np.unique(stored[bad])
        shown = ", ".join(map(str, values[:5])) + (" ..." if len(values) > 5 else "")
        problem = f"label value {shown} (first at x {column}, y {row}) is no class; {len(vocabulary)} classes have {first}..{last}"
        raise SourceError(f"{where}: {problem}. {_cure(values, vocabulary)}")
    return np.where(ignored, IGNORE_INDEX, stored.astype(np.int32) - first).astype(np.int32)


def _cure(values: np.ndarray, vocabulary: ClassVocabulary) -> str:
    first, last = vocabulary.label_offset, vocabulary.label_offset + len(vocabulary) - 1
    if values.tolist() == [last + 1] and first == 0:
        return "Values that start at 1 need --label-offset 1 (and --ignore 0,255 if 0 means no label); or a class name is missing"
    if values.tolist() == [0]:
        return f"If 0 means no label, give --ignore 0,{_DEFAULT_IGNORE}; if it is the first class, --label-offset 0"
    if values.tolist() == [_DEFAULT_IGNORE]:
        return f"If {_DEFAULT_IGNORE} means no label, give --ignore {vocabulary.ignore_label},{_DEFAULT_IGNORE}"
    return "Name every class in the class list, or give the values without a class by --ignore"


def label_map_to_store(data: bytes, vocabulary: ClassVocabulary, ignore: Sequence[int], where: str) -> bytes | np.ndarray:
    """The label map as a sample holds it: the bytes as they are where every value is one of the vocabulary's, else class ids.

    Raises:
        SourceError: as `stored_label_values` and `class_ids`.
    """
    stored = stored_label_values(data, where)
    ids = class_ids(stored, vocabulary, ignore, where)
    others = [value for value in ignore if value != vocabulary.ignore_label]
    is_png = data.startswith(b"\x89PNG")
    return data if is_png and not (others and np.isin(stored, others).any()) else ids
