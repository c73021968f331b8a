"""What a language model is asked: a text with {class}, {dataset}, {m} and {examples} in it."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Sequence

from ofaseg.subclasses.cleaning import normal_form

DEFAULT_TEMPLATE = """\
You name things that can be seen in photos of the dataset "{dataset}".
List {m} different, more specific kinds of the object class "{class}": kinds that look different from each other and that a person
would recognise in a photo. Use the meaning that the word "{class}" has as a class of that dataset. Every kind is a common English
name of one to four words, without brackets, numbering or explanation, and is not "{class}" itself. For a class that has no kinds,
such as a background, give {m} typical appearances of it.
Answer with one JSON object and nothing else, its only key the class name, its value the list of names. Examples of answers for
other classes:
{examples}
The class is "{class}".
"""

DEFAULT_EXAMPLES = {
    "lamp": ("desk lamp", "floor lamp", "chandelier", "lava lamp", "paper lantern"),
    "hat": ("straw hat", "baseball cap", "bowler hat", "beanie", "sombrero"),
    "hill": ("grassy hill", "rocky hill", "sand dune", "terraced hillside", "wooded hill"),
}
"""Few-shot examples of kinds; a class that is asked for never is its own example."""

_SLOT = re.compile(r"\{(class|dataset|m|examples)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with slots; other braces stand for themselves, so JSON can be written as it is.

    Attributes:
        text: the prompt, with {class} at least once, and {dataset}, {m} (how many names) and {examples} where wanted.
        examples: class name -> subclass names, shown in place of {examples} as one JSON object a line.
        dataset: what the photos are, in place of {dataset}.
    """

    text: str = DEFAULT_TEMPLATE
    examples: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict(DEFAULT_EXAMPLES))
    dataset: str = "everyday photos"

    def __post_init__(self):
        if "{class}" not in self.text:
            raise ValueError("the prompt template has no {class} where the class name goes; write it at least once")

    def fill(self, class_name: str, wanted: int) -> str:
        """The prompt for `wanted` names of a class; what is put in is never searched for slots."""
        shown = {name: list(names) for name, names in self.examples.items() if normal_form(name) != normal_form(class_name)}
        examples = "\n".join(json.dumps({name: names}, ensure_ascii=False) for name, names in shown.items())
        values = {"class": class_name, "dataset": self.dataset, "m": str(wanted), "examples": examples}
        return _SLOT.sub(lambda match: values[match.group(1)], self.text)


def read_template(path) -> str:
    """The text of a template file. Raises ValueError with the file's name for one that cannot be read or has no {class}."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt template {path}: cannot be read ({error})") from error
    if "{class}" not in text:
        raise ValueError(f"prompt template {path}: has no {{class}} where the class name goes")
    return text
