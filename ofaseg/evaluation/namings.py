"""The same classes in other words: what a model is given as names, and which class each of them stands for.

A naming never changes what is labelled, so that scores under several namings say how much a model hangs on the words.
"""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterable, Mapping, Optional, Sequence

from ofaseg.vocabulary import ClassVocabulary, VocabularyError

BACKGROUND_NAME = "background"
"""A class of this name keeps it under every naming: methods with a background find it by its name."""
SUFFIXES = ("other", "stuff", "merged", "thing", "things")
"""What datasets append to names with a hyphen or underscore to keep classes apart; no caption says it."""
_DISTRACTORS = Path(__file__).parent / "settings" / "distractors.json"


@dataclass(frozen=True)
class Naming:
    """Names for a model.

    Attributes:
        title: what tables call it.
        names: N distinct names.
        classes: N class ids 0..K-1 of the vocabulary, or K for a name that is none of its classes.
        renamed: how many of the K classes have other names than the official one.
    """

    title: str
    names: tuple[str, ...]
    classes: tuple[int, ...]
    renamed: int = 0


def official(vocabulary: ClassVocabulary) -> Naming:
    """The names of the vocabulary as they are."""
    return Naming("official names", vocabulary.names, tuple(range(len(vocabulary))))


def plain_name(name: str) -> str:
    """Lower case, without bracketed parts and `SUFFIXES`, hyphens and underscores as blanks; the name itself if nothing were left.

    "Door-stuff" -> "door", "floor_other_merged" -> "floor", "cabinet (furniture)" -> "cabinet".
    """
    words = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", name.lower())
    words = re.sub(rf"([-_]({'|'.join(SUFFIXES)}))+\s*$", "", words.strip())
    return " ".join(re.split(r"[\s_-]+", words)).strip() or name


def plain(vocabulary: ClassVocabulary) -> Naming:
    """`plain_name` of every class, but for classes that would share it with another."""
    return one_name_each("plain names", vocabulary, {name: [plain_name(name)] for name in vocabulary.names})


def one_name_each(title: str, vocabulary: ClassVocabulary, choices: Mapping[str, Sequence[str]]) -> Naming:
    """For every class the first of its choices that differs from its name and that no other class has, as name or among its choices.

    Args:
        choices: official name -> names; classes without one keep theirs.
    """
    free = _free_names(vocabulary, choices)
    names = []
    for name, mine in zip(vocabulary.names, free):
        names.append(next((other for other in mine if other != name), name))
    renamed = sum(a != b for a, b in zip(names, vocabulary.names))
    return Naming(title, tuple(names), tuple(range(len(names))), renamed)


def synonyms(vocabulary: ClassVocabulary, table: Mapping[str, Sequence[str]]) -> Naming:
    """For every class its first synonym that differs in more than case, hyphens and blanks, see `one_name_each`."""
    differing = {name: [other for other in others if _key(other) != _key(name)] for name, others in table.items()}
    return one_name_each("synonyms", vocabulary, differing)


def subclasses(vocabulary: ClassVocabulary, table: Mapping[str, Sequence[str]]) -> Naming:
    """Every class as all its subclasses, each a name of its own, without those that another class has too; else its official name."""
    names, classes, renamed = [], [], 0
    for k, (name, mine) in enumerate(zip(vocabulary.names, _free_names(vocabulary, table))):
        names += mine or [name]
        classes += [k] * max(1, len(mine))
        renamed += bool(mine) and mine != [name]
    return Naming("subclasses", tuple(names), tuple(classes), renamed)


def with_distractors(vocabulary: ClassVocabulary, distractors: Sequence[str], count: int) -> Naming:
    """The official names, and after them the first `count` distractors, which stand for no class.

    Raises:
        VocabularyError: fewer distractors than that.
    """
    if len(distractors) < count:
        raise VocabularyError(
            f"{count} distractors are asked for, {len(distractors)} are left beside the class names; give more with --distractors FILE"
        )
    known = len(vocabulary)
    classes = (*range(known), *[known] * count)
    return Naming(f"{count} distractors", (*vocabulary.names, *distractors[:count]), classes)


def permuted(naming: Naming, seed: int) -> Naming:
    """The same names in another order, never the one they had (of two names or more)."""
    order = list(range(len(naming.names)))
    random.Random(seed).shuffle(order)
    if order == sorted(order):
        order = [*order[1:], *order[:1]]
    names, classes = (tuple(values[i] for i in order) for values in (naming.names, naming.classes))
    return replace(naming, title="another class order", names=names, classes=classes)


def usable_distractors(words: Iterable[str], vocabulary: ClassVocabulary, tables: Iterable[Mapping[str, Sequence[str]]], seed: int) -> list:
    """The words that do not speak of a class, each once, in an order drawn with `seed`.

    A word goes that is, in singular or plural, a class name or a word in one; or one of the other names in `tables`, or in those.
    """
    taken: set[str] = set()
    others = [other for table in tables for name in vocabulary.names for other in table.get(name, ())]
    for name in (*vocabulary.names, *others):
        key = _key(plain_name(name))
        for form in (_key(name), key, *key.split()):
            taken |= {form, form + "s", form + "es", form.removesuffix("s"), form.removesuffix("es")}
    kept = {_key(word): word.strip() for word in reversed(list(words)) if _key(word) and _key(word) not in taken}
    result = [kept[key] for key in sorted(kept)]
    random.Random(seed).shuffle(result)
    return result


def common_nouns() -> list[str]:
    """The built-in distractors: several hundred nouns for things that photos can show and few vocabularies have."""
    return json.loads(_DISTRACTORS.read_text(encoding="utf-8"))


def read_names(path, vocabulary: ClassVocabulary) -> dict[str, list[str]]:
    """Other names of the classes from a file: official name -> names, classes that the file does not have left out.

    Two forms: a JSON object {class: [names]}, and lines ``id:name,name,...`` whose first name is the class (ids are not read, for
    files count differently). Upper case, hyphens, underscores and `SUFFIXES` make no difference in finding a class; one that
    heads no line is looked for among the names of single lines.

    Raises:
        VocabularyError: the file cannot be read or is of another form, or none of the classes is in it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{path}: the names cannot be read ({error})") from error
    lines = _json_lines(text, path) if path.suffix == ".json" or text.lstrip().startswith(("{", "[")) else _text_lines(text, path)
    found = {name: list(names) for name in vocabulary.names if (names := _line_of(name, lines))}
    if not found:
        raise VocabularyError(
            f"{path}: none of the {len(vocabulary)} classes is in it, such as {vocabulary.names[0]!r}; is it another list?"
        )
    return found


def _json_lines(text: str, path: Path) -> list[list[str]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise VocabularyError(f"{path}: not valid JSON ({error}); write an object {{class: [names]}}") from error
    if not isinstance(data, dict):
        raise VocabularyError(f"{path}: needs a JSON object {{class: [names]}}, not a {type(data).__name__}")
    for name, names in data.items():
        if not isinstance(names, list) or not all(isinstance(other, str) for other in names):
            raise VocabularyError(f"{path}, class {name!r}: {names!r} is no list of names")
    return [[name, *names] for name, names in data.items()]


def _text_lines(text: str, path: Path) -> list[list[str]]:
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        identity, colon, names = line.partition(":")
        if not colon or not identity.strip().isdigit() or not names.strip():
            raise VocabularyError(f"{path}, line {number}: {line!r} is not of the form id:name,name,...")
        lines.append([name.strip() for name in names.split(",") if name.strip()])
    return [line for line in lines if line]


def _line_of(name: str, lines: Sequence[Sequence[str]]) -> Optional[list[str]]:
    """The names of a class after the one it was found by; None without a line, or with several that it does not head."""
    for form in (_key, lambda text: _key(plain_name(text))):
        heads = [line for line in lines if form(line[0]) == form(name)]
        if heads:
            return list(heads[0][1:])
    inside = [line for line in lines if _key(name) in map(_key, line)]
    return [other for other in inside[0] if _key(other) != _key(name)] if len(inside) == 1 else None


def _free_names(vocabulary: ClassVocabulary, choices: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """For every class those of its choices that are no other class's name or choice, each once; none for the background."""
    own = []
    for name in vocabulary.names:
        given = [" ".join(other.replace("_", " ").split()) for other in choices.get(name, ())]
        own.append([] if _key(name) == BACKGROUND_NAME else list({_key(other): other for other in given if other}.values()))
    owners = Counter(key for name, mine in zip(vocabulary.names, own) for key in {_key(name), *map(_key, mine)})
    return [[other for other in mine if owners[_key(other)] == 1] for mine in own]


def _key(name: str) -> str:
    """What makes two names the same: words without case, hyphens and underscores."""
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()
