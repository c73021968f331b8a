"""What the label values of a whole split say: shifted by one, another ignore value, too many classes, nothing but background."""

from dataclasses import dataclass, field, replace
from functools import reduce
from math import gcd
from typing import NamedTuple, Optional

import numpy as np

from ofaseg.doctor.findings import Finding, finding
from ofaseg.vocabulary import ClassVocabulary

IGNORE_CONVENTIONS = (255, 65535)
BACKGROUND_WORDS = {"background", "other", "void", "unlabeled", "unlabelled", "unknown", "ignore", "nothing", "none", "rest", "misc"}
_FEW_VALUES = 40
_MANY_MAPS, _FEW_MAPS, _ENOUGH_MAPS = 0.9, 0.1, 3


class Conventions(NamedTuple):
    """How the files of a raw folder are meant.

    Attributes:
        label_offset: stored value of class 0.
        ignore: stored values of "no label"; none: 255.
        image_ending, label_ending: what stems of photos and label maps end in beside what a pair shares, see `files_by_stem`.
    """

    label_offset: int = 0
    ignore: tuple[int, ...] = ()
    image_ending: str = ""
    label_ending: str = ""


@dataclass
class ValueCount:
    """How often a stored value occurs: pixels, maps, and the first place (file, row) in reading order."""

    pixels: int
    maps: int
    place: tuple[str, Optional[int]]


@dataclass
class LabelTally:
    """Stored label values of many maps.

    Attributes:
        values: stored value -> its `ValueCount`.
        maps: number of maps that could be decoded.
    """

    values: dict[int, ValueCount] = field(default_factory=dict)
    maps: int = 0

    def add(self, stored: np.ndarray, place: tuple[str, Optional[int]]) -> np.ndarray:
        """Counts the values of a stored map (H, W) uint8 or uint16; returns those that occur, ascending."""
        counts = np.bincount(stored.ravel())
        present = np.flatnonzero(counts)
        self._merge({int(value): ValueCount(int(counts[value]), 1, place) for value in present})
        self.maps += 1
        return present

    def merge(self, other: "LabelTally") -> None:
        """Adds the counts of maps that come after these."""
        self._merge(other.values)
        self.maps += other.maps

    def _merge(self, values: dict[int, ValueCount]) -> None:
        for value, count in values.items():
            if value in self.values:
                mine = self.values[value]
                mine.pixels, mine.maps = mine.pixels + count.pixels, mine.maps + count.maps
            else:
                self.values[value] = replace(count)


def class_values(vocabulary: ClassVocabulary) -> range:
    """The stored values of the classes, in order."""
    return range(vocabulary.label_offset, vocabulary.label_offset + len(vocabulary))


def no_label_values(vocabulary: ClassVocabulary, conventions: Optional[Conventions] = None) -> set[int]:
    """The stored values that mean "no label": in shards as `codec.decode_label_map` reads them in 8-bit maps.

    In raw folders (with `conventions`) they are those that were given, as the converter reads them.
    """
    if conventions is not None:
        return {vocabulary.ignore_label, *conventions.ignore}
    legacy = {255} - set(class_values(vocabulary)) if vocabulary.label_offset == 1 else set()
    return {vocabulary.ignore_label} | legacy


def settings(conventions: Optional[Conventions], offset: Optional[int] = None, ignore: tuple[int, ...] = ()) -> str:
    """How to set the stored value of class 0 and the ignored values (the first alone in shards): words for a cure."""
    values = {"label_offset": offset, "ignore_index": ignore[0] if ignore else None}
    if conventions is None:
        return "set " + " and ".join(f"{key} to {value}" for key, value in values.items() if value is not None) + " in vocabulary.json"
    flags = [f"--label-offset {offset}"] if offset is not None else []
    flags += [f"--ignore {','.join(map(str, ignore))}"] if ignore else []
    return f"give {' '.join(flags)} to the doctor and to the converter (own_folder.sh: PREPARE_FLAGS='{' '.join(flags)}')"


def _from_one(tally: LabelTally, conventions: Optional[Conventions]) -> str:
    """The cure where classes are stored from 1."""
    words = settings(conventions, 1, (0, 255) if 255 in tally.values else (0,))
    return f"{words} (reduce zero label), or, if 0 is a class of its own, add its name at the start of the class list"


def diagnose(tally: LabelTally, vocabulary: ClassVocabulary, where: str, conventions: Optional[Conventions] = None) -> list[Finding]:
    """What is wrong with the labels of a split as a whole, with the fix.

    Args:
        where: its folder or file.
        conventions: of a raw folder, None for shards.
    """
    if not tally.maps:
        return []
    classes, ignored = class_values(vocabulary), no_label_values(vocabulary, conventions)
    outside = sorted(value for value in tally.values if value not in classes and value not in ignored)
    if outside:
        return [_outside(tally, vocabulary, outside, conventions)]
    return (
        _black_and_white(tally, vocabulary)
        or _shifted_in_range(tally, vocabulary, conventions)
        or _occurrence(tally, vocabulary, where, conventions)
    )


def _outside(tally: LabelTally, vocabulary: ClassVocabulary, outside: list[int], conventions: Optional[Conventions]) -> Finding:
    """The most likely reason for values that are neither a class nor the ignore value."""
    classes, number = class_values(vocabulary), len(vocabulary)
    used = sorted(value for value in tally.values if value not in IGNORE_CONVENTIONS and value != vocabulary.ignore_label)
    file, row = tally.values[outside[0]].place
    seen = f"{tally.maps} maps hold {_shown(sorted(tally.values))}; {number} classes are stored as {classes[0]}..{classes[-1]}"
    scale = 255 if set(tally.values) <= {0, 255} else reduce(gcd, used, 0)
    if scale == 255 or (scale > 1 and max(used) // scale <= number):
        cure = f"divide the values by {scale}; they were multiplied to be visible"
        return finding("stretched_labels", file, seen, cure, row, "label_map")
    if set(outside) <= set(IGNORE_CONVENTIONS):
        ignore = (outside[0],) if conventions is None else (vocabulary.ignore_label, *conventions.ignore[1:], *outside)
        cure = f"say that {outside[0]} means no label: {settings(conventions, ignore=ignore)}, or map it to {vocabulary.ignore_label}"
        return finding("ignore_value", file, seen, cure, row, "label_map")
    if vocabulary.label_offset == 0 and outside == [number] and 0 in tally.values:
        cure = f"0 is background or no label and the classes start at 1 (as in ADE20K): {_from_one(tally, conventions)}"
        return finding("reduce_zero_label", file, seen, cure, row, "label_map")
    if outside == [0] and vocabulary.label_offset == 1:
        ignore = (0,) if conventions is None else (0, vocabulary.ignore_label)
        cure = f"if 0 is background or no label, {settings(conventions, ignore=ignore)}; "
        cure += f"if it is a class, {settings(conventions, offset=0)}, and add its name at the start of the class list"
        return finding("reduce_zero_label", file, seen, cure, row, "label_map")
    needed = max(used, default=0) - vocabulary.label_offset + 1
    cure = f"give {needed} class names, or map the labels to the {number} classes (reduce zero label if 0 is background)"
    return finding("class_count", file, seen, cure, row, "label_map")


def _black_and_white(tally: LabelTally, vocabulary: ClassVocabulary) -> list[Finding]:
    """Masks of 0 and 255 where 255 is no label: read as they are, one class would be everywhere and the other never seen."""
    if set(tally.values) != {0, 255} or 255 in class_values(vocabulary) or len(vocabulary) < 2:
        return []
    message = f"the {tally.maps} maps hold 0 and 255 alone, and 255 means no label, so {len(vocabulary) - 1} classes never occur"
    cure = "divide the values by 255 if this is a mask of two classes, saved to be looked at"
    file, row = tally.values[255].place
    return [finding("stretched_labels", file, message, cure, row, "label_map")]


def _shifted_in_range(tally: LabelTally, vocabulary: ClassVocabulary, conventions: Optional[Conventions]) -> list[Finding]:
    """Labels 0..K-1 with 255 for no label, read as 1..K with 0 for no label: class 0 would be lost and all others renamed."""
    last = class_values(vocabulary)[-1]
    shifted = vocabulary.label_offset == 1 and vocabulary.ignore_label == 0 and {0, 255} <= set(tally.values) and last not in tally.values
    if not shifted:
        return []
    message = f"classes are said to count from 1, 0 to mean no label, but the maps hold 0 and 255, and never {last}"
    cure = f"if the classes are stored from 0 and 255 is no label, {settings(conventions, 0, (255,))}"
    file, row = tally.values[0].place
    return [finding("reduce_zero_label", file, message, cure, row, "label_map")]


def maybe_shifted(tally: LabelTally, vocabulary: ClassVocabulary, where: str, conventions: Optional[Conventions] = None) -> list[Finding]:
    """Signs that 0 means background or no label although class 0 is a real class, where every value is one of a class.

    That is so when the last classes are rare (ADE20K's 0..150 read with its 150 names, and no 150 in the maps). The signs: 0 is
    in nearly every map, hardly a map has an ignore value, and the last class never occurs. They are weak in one small split, so
    `tally` should hold the maps of all splits.
    """
    classes, ignored = class_values(vocabulary), no_label_values(vocabulary, conventions)
    named = set(vocabulary.names[0].lower().replace("_", " ").split()) & BACKGROUND_WORDS
    if named or vocabulary.label_offset or len(vocabulary) < 3 or tally.maps < _ENOUGH_MAPS:
        return []
    share = {value: count.maps / tally.maps for value, count in tally.values.items()}
    full_range = any(value not in classes and value not in ignored for value in share) or classes[-1] in share
    if full_range or len(share) < 3 or share.get(0, 0) < _MANY_MAPS or any(share.get(value, 0) > _FEW_MAPS for value in ignored):
        return []
    message = f"0 is in {tally.values[0].maps} of {tally.maps} maps, no value means no label, and {classes[-1]} never occurs: is 0 "
    message += f"{vocabulary.names[0]!r}, as the class list says, or background?"
    cure = f"nothing to do if it is the class; else {_from_one(tally, conventions)}"
    return [finding("maybe_shifted", where, message, cure, column="label_map")]


def _occurrence(tally: LabelTally, vocabulary: ClassVocabulary, where: str, conventions: Optional[Conventions]) -> list[Finding]:
    """Splits without labels, with one class alone, or without some classes."""
    classes = class_values(vocabulary)
    used = [value for value in classes if value in tally.values]
    if not used:
        message = f"none of the {tally.maps} maps has a labelled pixel (values: {_shown(sorted(tally.values))})"
        cure = f"write the maps again; if 0 is a class, {settings(conventions, 0, (255,))}"
        return [finding("labels_empty", where, message, cure, column="label_map")]
    if len(used) == 1 and len(vocabulary) > 1:
        message = f"every labelled pixel of the {tally.maps} maps is {used[0]} ({vocabulary.names[used[0] - classes[0]]})"
        cure = "look at a few maps: empty masks are often saved as 0"
        return [finding("one_class", where, message, cure, column="label_map")]
    absent = [name for name, value in zip(vocabulary.names, classes) if value not in tally.values]
    if not absent:
        return []
    shown = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
    cure = "expected in a small split; otherwise check the class list and its order"
    return [finding("unused_class", where, f"no pixel of {shown} in {tally.maps} maps", cure, column="label_map")]


def _shown(values: list[int]) -> str:
    """ "0..3, 7, 255": ascending values with their runs joined."""
    if len(values) > _FEW_VALUES:
        return f"{len(values)} values between {values[0]} and {values[-1]}"
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}..{b}" for a, b in runs)
