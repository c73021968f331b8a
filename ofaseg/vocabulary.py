"""Class vocabularies: the ordered class names behind a label map, and everything said about them."""

import colorsys
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional, Sequence

IGNORE_INDEX = -1
"""The class id of a pixel that has no label, everywhere after a label map has been decoded."""


class VocabularyError(ValueError):
    """A class list is missing, empty, repeated, or disagrees with another one."""


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """`num_classes` RGB colours (0..255); neighbours in class order differ in hue and in lightness."""
    golden_angle = 0.618033988749895
    colours = []
    for k in range(num_classes):
        hue = (0.08 + k * golden_angle) % 1.0
        lightness = (0.50, 0.36, 0.66)[k % 3]
        rgb = colorsys.hls_to_rgb(hue, lightness, 0.75)
        colours.append(tuple(round(255 * c) for c in rgb))
    return tuple(colours)


_FILE_ENDING = re.compile(r"\.(txt|names|lst|list|labels|csv|tsv|json|ya?ml)$", re.IGNORECASE)


def names_a_file(text: str) -> bool:
    """Whether a text with class names is the name of a file, there or not; see `parse_class_names`."""
    return "," not in text and "\n" not in text and bool("/" in text or _FILE_ENDING.search(text) or Path(text).is_file())


def blank_lines(path) -> list[int]:
    """Numbers (from 0) of blank lines within a class list, which count as no class: the names after them move up.

    Raises OSError or UnicodeDecodeError when the file cannot be read.
    """
    lines = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    return [k for k, line in enumerate(lines) if not line.strip()]


def parse_class_names(text: str) -> tuple[str, ...]:
    """Class names from a file with one name per line, or from a comma-separated list.

    An argument without a comma that names an existing file, or that looks like a file's name (a slash, an ending), is read as a file.

    Raises:
        VocabularyError: the file is missing or not UTF-8, the list is empty, or a name is empty or repeated.
    """
    path = Path(text)
    if names_a_file(text):
        if not path.is_file():
            raise VocabularyError(f"class list file not found: {text}")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise VocabularyError(f"{text}: not a UTF-8 text file ({error.reason}); write one class name per line") from error
        names = [line.strip() for line in lines if line.strip()]
        where = text
    else:
        names = [name.strip() for name in text.split(",")]
        where = "the class list"
    check_class_names(names, where)
    return tuple(names)


def check_class_names(names, where: str) -> None:
    """Raises VocabularyError unless `names` is a non-empty list of distinct, non-empty strings."""
    if not names:
        raise VocabularyError(f"{where} holds no class name; give one name per line, or a comma-separated list")
    seen: dict[str, int] = {}
    for k, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise VocabularyError(f"{where}: class {k} has an empty name; remove the extra comma or line")
        if name in seen:
            raise VocabularyError(f"{where}: class name {name!r} stands twice (classes {seen[name]} and {k}); merge or rename one")
        seen[name] = k


def _check_entries(data: dict, where: str) -> None:
    """Raises VocabularyError for entries of vocabulary.json that have another type (edited by hand)."""
    for key in ("label_offset", "ignore_index"):
        value = data.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise VocabularyError(f"{where}: {key} is {value!r}, not a number from 0 on; correct it or write the shards again")
    for key in ("thing", "novel", "palette"):
        values = data.get(key) or []
        if not isinstance(values, list) or (key == "palette" and not all(isinstance(colour, list) for colour in values)):
            raise VocabularyError(f"{where}: {key} is not a list with an entry per class; correct it or leave it out")


def share_a_word(names: Sequence[str], known: Sequence[str]) -> tuple[bool, ...]:
    """For each name whether it is one of the known names in other writing.

    Case, hyphens, underscores and blanks do not count, and of names that list synonyms ("road, route") one in common is enough.
    """
    words = {word for name in known for word in _words_of(name)}
    return tuple(not words.isdisjoint(_words_of(name)) for name in names)


def _words_of(name: str) -> set[str]:
    parts = ("".join(character if character.isalnum() else " " for character in part.casefold()) for part in name.split(","))
    return {" ".join(part.split()) for part in parts} - {""}


def name_difference(there: Sequence[str], here: Sequence[str]) -> str:
    """How the class names of a file (`there`) differ from those of this run, for messages; "" for the same ones in one order."""
    if len(there) != len(here):
        return f"{len(there)} classes there, {len(here)} here"
    k = next((k for k, (a, b) in enumerate(zip(there, here)) if a != b), None)
    return "" if k is None else f"class {k} is {there[k]!r} there, {here[k]!r} here"


@dataclass(frozen=True)
class ClassVocabulary:
    """Ordered class names with what is known about each class.

    Attributes:
        names: K class names; position k is class id k.
        thing: K booleans, True for countable classes; empty when unknown.
        novel: K booleans, True for classes held out of training; empty when there is no base/novel split.
        palette: K RGB triples, 0..255.
        label_offset: a stored label map holds class id + `label_offset` (0 in our shards, 1 in IFSeg's TSV files).
        ignore_label: the stored value of an unlabelled pixel (255, or 65535 in 16-bit maps, 0 in IFSeg's TSV files).
        source: where the names come from, for people.
    """

    names: tuple[str, ...]
    thing: tuple[bool, ...] = ()
    novel: tuple[bool, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    label_offset: int = 0
    ignore_label: Optional[int] = None
    source: str = ""
    extra: dict = field(default_factory=dict, compare=False)

    def __post_init__(self):
        check_class_names(list(self.names), self.source or "the class vocabulary")
        if self.ignore_label is None:
            object.__setattr__(self, "ignore_label", 255 if len(self.names) + self.label_offset <= 255 else 65535)
        if not self.palette:
            object.__setattr__(self, "palette", default_palette(len(self.names)))
        where = self.source or "the class vocabulary"
        for attribute in ("thing", "novel", "palette"):
            values = getattr(self, attribute)
            if values and len(values) != len(self.names):
                problem = f"{len(values)} entries in {attribute!r} for {len(self.names)} class names"
                raise VocabularyError(f"{where}: {problem}; give one per class")
        first, last = self.label_offset, self.label_offset + len(self.names) - 1
        if first <= self.ignore_label <= last:
            problem = f"the ignore label {self.ignore_label} is also the stored value of a class ({first}..{last})"
            raise VocabularyError(f"{where}: {problem}; choose another one")

    def __len__(self) -> int:
        return len(self.names)

    def to_json(self) -> dict:
        """A JSON-ready dict; `from_json` reads it back to an equal vocabulary."""
        return {
            "names": list(self.names),
            "thing": [bool(t) for t in self.thing],
            "novel": [bool(n) for n in self.novel],
            "palette": [list(colour) for colour in self.palette],
            "label_offset": self.label_offset,
            "ignore_index": self.ignore_label,
            "source": self.source,
            **self.extra,
        }

    @classmethod
    def from_json(cls, data: dict, where: str = "vocabulary.json") -> "ClassVocabulary":
        """Inverse of `to_json`; keys it does not know end up in `extra`.

        Raises:
            VocabularyError: `data` is no dict with a list of names, or its lists have different lengths.
        """
        if not isinstance(data, dict) or not isinstance(data.get("names"), list):
            raise VocabularyError(f"{where}: needs a JSON object with a list 'names' of class names; write the shards again")
        _check_entries(data, where)
        known = {"names", "thing", "novel", "palette", "label_offset", "ignore_index", "source"}
        vocabulary = cls(  # errors name the file, whatever the source is called
            names=tuple(data["names"]),
            thing=tuple(data.get("thing") or ()),
            novel=tuple(data.get("novel") or ()),
            palette=tuple(tuple(colour) for colour in data.get("palette") or ()),
            label_offset=data.get("label_offset") or 0,
            ignore_label=data.get("ignore_index"),
            source=where,
            extra={key: value for key, value in data.items() if key not in known},
        )
        return replace(vocabulary, source=data.get("source", "") or where)

    def renamed(self, names) -> "ClassVocabulary":
        """The same classes in other words; `extra["renamed_from"]` keeps the words of the shards.

        Raises:
            VocabularyError: another number of names, or one that is empty or repeated.
        """
        if tuple(names) == self.names:
            return self
        first = self.extra.get("renamed_from", list(self.names))
        return ClassVocabulary.from_json(self.to_json() | {"names": list(names), "renamed_from": first}, self.source)

    def renames(self, other: "ClassVocabulary") -> bool:
        """Whether these are the classes of `other` in other words, see `renamed`."""
        return self.extra.get("renamed_from") == list(other.names)


def resolve_vocabulary(class_names: str, shard_vocabulary: Optional[ClassVocabulary], rename_classes: bool = False) -> ClassVocabulary:
    """The vocabulary to use, given `--class-names` text (may be empty) and the one beside the shards (may be None).

    With `rename_classes` the given names replace the shards' names one by one (same classes, other words); otherwise
    two different lists are an error, never a silent choice.

    Raises:
        VocabularyError: neither is given, or the two disagree.
    """
    if not class_names:
        if shard_vocabulary is None:
            raise VocabularyError(
                "no class names: give --class-names (a file or a comma-separated list), or put vocabulary.json beside the shards"
            )
        return shard_vocabulary
    names = parse_class_names(class_names)
    if shard_vocabulary is None:
        return ClassVocabulary(names=names, source="--class-names")
    theirs = shard_vocabulary.names
    if len(names) != len(theirs):
        some = ", ".join(theirs[:10]) + (", ..." if len(theirs) > 10 else "")
        cure = f"drop --class-names, or give {len(theirs)} names in that order with --rename-classes"
        raise VocabularyError(f"--class-names has {len(names)} classes, the shards have {len(theirs)} ({some}); {cure}")
    if names != theirs and not rename_classes:
        k = next(k for k in range(len(names)) if names[k] != theirs[k])
        raise VocabularyError(
            f"--class-names and {shard_vocabulary.source} disagree, first at class {k}: {names[k]!r} against {theirs[k]!r}; "
            "drop --class-names, or add --rename-classes if the same classes are meant in other words"
        )
    return shard_vocabulary.renamed(names)
