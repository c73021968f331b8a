"""Checks of class lists: vocabulary.json, text files with one name per line."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ofaseg.doctor.findings import Finding, Findings, finding, from_error
from ofaseg.vocabulary import ClassVocabulary, VocabularyError, blank_lines, name_difference, parse_class_names

_NUMBERED = re.compile(r"^\d+\s*[:=\t;,.)]|^(class|label|category|id)?[ _-]?\d+$", re.IGNORECASE)


def check_class_list(path: str, findings: Findings) -> None:
    """Checks a .txt class list or a .json vocabulary."""
    try:
        if path.endswith(".json"):
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            names = ClassVocabulary.from_json(data, path).names
        else:
            names = parse_class_names(str(Path(path).resolve()))
            findings.add(*check_lines(path))
    except VocabularyError as error:
        findings.add(from_error("bad_vocabulary", error, path if path.endswith(".json") else Path(path).resolve()))
        return
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        findings.add(finding("bad_vocabulary", path, f"not valid JSON ({error})", "restore it from a copy or write the shards again"))
        return
    findings.add(*check_names(names, path))


def check_lines(path: str) -> list[Finding]:
    """Blank lines within a class list, which are passed over: the names after them have lower numbers than their lines.

    Raises OSError or UnicodeDecodeError when the file cannot be read.
    """
    blank = blank_lines(path)
    if not blank:
        return []
    message = f"line {blank[0] + 1} is blank and counts as no class, so the names after it move up"
    cure = "remove it, or write the name of that class"
    return [finding("doubtful_names", path, message + (f" ({len(blank)} such lines)" if len(blank) > 1 else ""), cure, blank[0])]


def check_written_names(vocabulary: ClassVocabulary, root, split: str) -> list[Finding]:
    """Compares the names of vocabulary.json with those in summary_<split>.json, which are those the label values were written with.

    A summary that is absent or damaged says nothing: training does not read it.
    """
    path = Path(root) / f"summary_{split}.json"
    try:
        written = [entry["name"] for entry in json.loads(path.read_text(encoding="utf-8"))["classes"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []
    here = vocabulary.extra.get("renamed_from") or list(vocabulary.names)
    difference = name_difference(written, here)
    if not written or not difference:
        return []
    message = f"its names are not those of {path.name}, which was written with the label maps: {difference}"
    where = Path(root) / "vocabulary.json"
    if len(written) == len(here) and set(written) != set(here):
        cure = "nothing to do if the same classes are meant in other words; else restore vocabulary.json"
        return [finding("names_changed", where, message, cure)]
    return [finding("classes_differ", where, message, "restore vocabulary.json, or write the shards again: values now mean other classes")]


def check_names(names: Sequence[str], where: str) -> list[Finding]:
    """Names that are distinct for a computer, but not for a reader; `row` is the class."""
    found, known = [], {}
    for k, name in enumerate(names):
        plain = re.sub(r"[\W_]+", "", name).lower()
        if plain and plain in known:
            message = f"class {k} is {name!r}, class {known[plain]} is {names[known[plain]]!r}"
            found.append(finding("similar_names", where, message, "merge the two, or give them words that differ", k))
        known.setdefault(plain, k)
        if name.startswith("#"):
            message = f"class {k} is {name!r}: a comment counts as a class"
            found.append(finding("doubtful_names", where, message, "remove the line; class lists have no comments", k))
        elif not name.isprintable():
            message = f"class {k} is {name!r}, with a tab, a control character or an unusual blank"
            found.append(finding("doubtful_names", where, message, "write the name alone, with blanks between its words", k))
        if _NUMBERED.match(name):
            message = f"class {k} is {name!r}: a model reads the number as a word"
            found.append(finding("numbered_names", where, message, "write plain words; the position in the list is the class id", k))
    if len(names) > 1 and any(all(re.match(rf"{k + first}\s", name) for k, name in enumerate(names)) for first in (0, 1)):
        message = f"every name begins with its number, as in {names[0]!r}: a model reads the number as a word"
        found.append(finding("numbered_names", where, message, "write plain words; the position in the list is the class id", 0))
    return found
