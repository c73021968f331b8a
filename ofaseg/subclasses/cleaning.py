"""Cleaning of subclass names: blanks, underscores, bracketed expansions and repetitions."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Sequence

_BRACKETED = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")


@dataclass(frozen=True)
class Change:
    """What happened to one name of a class.

    Attributes:
        class_name: the class whose list it was in.
        before: the name as it was written.
        after: the name now; "" for one that was taken out.
        reason: why, in words.
    """

    class_name: str
    before: str
    after: str
    reason: str

    def __str__(self) -> str:
        shown = f"{self.before!r} -> {self.after!r}" if self.after else f"{self.before!r} taken out"
        return f"{self.class_name}: {shown}: {self.reason}"


def normal_form(name: str) -> str:
    """What two names share that are one name to a reader: no case, underscores as blanks, single blanks."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split()).casefold()


def clean_name(name: str) -> str:
    """'Commercial_Jetliner ' -> 'Commercial Jetliner', 'SUV (Sport Utility Vehicle)' -> 'SUV'; "" when nothing is left."""
    text = unicodedata.normalize("NFC", name).replace("_", " ")
    previous = None
    while text != previous:  # brackets inside brackets, from the inside out
        previous, text = text, _BRACKETED.sub(" ", text)
    return " ".join(text.split())


def clean_names(class_name: str, names: Sequence[str], keep_duplicates: bool = False) -> tuple[tuple[str, ...], list[Change]]:
    """The names cleaned, in their order, the first of repeated ones kept, and what was changed.

    Args:
        class_name: for the report.
        names: as they were written.
        keep_duplicates: leave repetitions in; in a mean over subclasses they count as often as they stand.
    """
    kept: list[str] = []
    changes: list[Change] = []
    seen: dict[str, str] = {}
    for name in names:
        cleaned = clean_name(name)
        first = seen.get(normal_form(cleaned))
        if not cleaned:
            changes.append(Change(class_name, name, "", "nothing is left of it"))
        elif first is not None and not keep_duplicates:
            changes.append(Change(class_name, name, "", f"repeats {first!r}"))
        else:
            kept.append(cleaned)
            seen.setdefault(normal_form(cleaned), cleaned)
            if cleaned != name:
                changes.append(Change(class_name, name, cleaned, "blanks, underscores or brackets"))
    return tuple(kept), changes
