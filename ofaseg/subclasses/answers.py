"""From the text that a language model answered to a list of names: what counts as an answer, and what as a name.

The text is untrusted. It is read as JSON, never run, and only plain names come through.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Optional, Sequence

from ofaseg.subclasses.cleaning import clean_name, clean_names, normal_form

LONGEST_NAME = 60
"""Characters of a name."""
MOST_WORDS = 8
MAX_STARTS = 64
"""Brackets in the prose around the JSON that are tried as its beginning."""
MAX_DROPPED = 50
"""Reasons kept of an answer, so that a hostile one cannot fill the log."""

LIST_KEYS = ("subclasses", "kinds", "names", "types", "list", "answer", "items", "result", "output")
CLASS_KEYS = ("class", "class_name", "category", "name", "label")

_PUNCTUATION = set(" -'’.&,/+%")
_NO_NAME = re.compile(
    r"\b(ignore|disregard|forget)\b.*\b(all|any|previous|above|prior|instruction\w*|prompt\w*|rules?)\b"
    r"|\binstructions?\b|\b(system|developer) (prompt|message)\b|\bas an ai\b|\blanguage model\b|\bi (can ?not|can'?t|am|will|have)\b"
    r"|\b(sorry|you are now|you must|please|api key|password)\b|https?|www\.|\bjavascript\b",
    re.IGNORECASE,
)

_BEGUN = re.compile(r'[\[{]\s*"')
"""The beginning of an answer, as against a bracket in prose."""


class AnswerError(ValueError):
    """An answer holds no usable list of names; the message says why, in one line."""


@dataclass(frozen=True)
class ParsedAnswer:
    """Attributes:
    names: clean and distinct, in the model's order.
    dropped: what was left out, each with its reason.
    """

    names: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def parse_answer(text: str, class_name: str, wanted: int, minimum: int = 1, other_classes: Sequence[str] = ()) -> ParsedAnswer:
    """The names in an answer for one class.

    The answer is a JSON list of names, or an object with the class name, a word such as "subclasses", or both as keys; prose and
    code fences around it are passed over. A name that is no plain name is left out; so are the class name itself, repetitions,
    names of other classes and those beyond `wanted`.

    Raises:
        AnswerError: no JSON of that form (such as a cut-off one), an answer for another class, or fewer than `minimum` names left.
    """
    values = _list_for(class_name, _find_json(text))
    dropped: list[str] = []
    plain = []
    for value in values:
        reason = "no string" if not isinstance(value, str) else _not_a_name(value)
        if reason:
            dropped.append(f"{str(value)[:40]!r}: {reason}")
        else:
            plain.append(value)
    cleaned, changes = clean_names(class_name, plain)
    dropped += [f"{change.before!r}: {change.reason}" for change in changes if not change.after]
    others = {normal_form(name) for name in other_classes}
    names = []
    for name in cleaned:
        if normal_form(name) == normal_form(class_name):
            dropped.append(f"{name!r}: the class itself")
        elif normal_form(name) in others:
            dropped.append(f"{name!r}: the name of another class")
        else:
            names.append(name)
    if len(names) < minimum:
        why = f" ({'; '.join(dropped[:3])})" if dropped else ""
        raise AnswerError(f"holds {len(names)} usable names of {len(values)}, fewer than {minimum}{why}")
    dropped += [f"{name!r}: beyond the {wanted} asked for" for name in names[wanted:]]
    return ParsedAnswer(tuple(names[:wanted]), tuple(dropped[:MAX_DROPPED]))


def _not_a_name(text: str) -> Optional[str]:
    """Why a string is no plain name of a thing, None when it may be one."""
    if len(text) > LONGEST_NAME or len(text.split()) > MOST_WORDS:
        return f"longer than {LONGEST_NAME} characters or {MOST_WORDS} words"
    if _NO_NAME.search(text):
        return "reads like an instruction or a sentence, not a name"
    # underscores and brackets are taken out later; control, private and invisible characters are of category C
    odd = [c for c in text if not (c in _PUNCTUATION or c in "_()[]" or unicodedata.category(c)[0] in "LMN")]
    if odd:
        return f"character {odd[0]!r} is in no name"
    return None if any(c.isalpha() for c in clean_name(text)) else "holds no letter"


def _list_for(class_name: str, found) -> list:
    """The list of names in the JSON of an answer. Raises AnswerError."""
    if isinstance(found, list):
        return found
    told = next((str(found[key]) for key in CLASS_KEYS if isinstance(found.get(key), str)), None)
    if told is not None and normal_form(told) != normal_form(class_name):
        raise AnswerError(f"is about {told[:40]!r}, not {class_name!r}")
    lists = {normal_form(key): value for key, value in found.items() if isinstance(value, list)}
    for key in (normal_form(class_name), *LIST_KEYS):
        if key in lists:
            return lists[key]
    if lists:
        raise AnswerError(f"is about {', '.join(repr(key[:40]) for key in list(lists)[:3])}, not {class_name!r}")
    raise AnswerError("is a JSON object without a list of names")


def _find_json(text: str):
    """The first JSON object or list in a text that could be an answer. Raises AnswerError."""
    decoder = json.JSONDecoder()
    starts = [match.start() for match, _ in zip(re.finditer(r"[\[{]", text), range(MAX_STARTS))]
    end, empty = 0, None
    for start in starts:
        if start < end:
            continue  # inside what was read and was no answer
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            if _BEGUN.match(text, start):
                break  # what is whole inside it may belong to another class
            continue
        if isinstance(found, dict) or any(isinstance(value, str) for value in found):
            return found
        empty = found
    if empty is not None:
        return empty
    if not text.strip():
        raise AnswerError("is empty")
    shown = " ".join(text[:60].split())
    raise AnswerError(f"holds no complete JSON list or object of names (cut off, or plain words): {shown!r}")
