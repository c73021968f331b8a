"""Finer names ("subclasses") of the classes of every vocabulary here; see `subclasses/README.md`.

Text-scored methods may describe a class by several finer names instead of its own: "sofa" by "leather sofa", "loveseat" and so
on (Sun et al. 2024, arXiv 2404.00701, ask a language model for such names). To use these sets, no language model is asked.
"""

import json
from pathlib import Path

from ofaseg.vocabulary import VocabularyError

_FOLDER = Path(__file__).parent / "subclasses"


def names() -> tuple[str, ...]:
    """The vocabularies with a set, in alphabetical order: those of `class_names/`, and "shapes"."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def subclass_set(name: str) -> dict[str, list[str]]:
    """The finer names of each class of the vocabulary `name`, in class order; a new dict at every call.

    Raises:
        VocabularyError: there is no such set; the message lists those there are.
    """
    if name not in names():
        raise VocabularyError(f"there is no subclass set {name!r}; choose one of {', '.join(names())}")
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
