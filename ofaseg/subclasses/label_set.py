"""Label sets: a list of subclass names for every class, in JSON: {"sofa": ["loveseat", "reclining sofa", ...], ...}.

The schema is that of the published sets of "Training-Free Semantic Segmentation via LLM-Supervision" (arXiv 2404.00701), except
that the order of the classes in the file means nothing: everything is looked up by class name.
"""

import json
from pathlib import Path
from typing import Mapping, Optional, Sequence

from ofaseg.atomic import atomic_write
from ofaseg.subclasses.cleaning import Change, clean_names, normal_form

ABOUT = "_about"
"""The entry of a file that tells how the set was made; no class."""

MAX_SHOWN = 12


class LabelSetError(ValueError):
    """A label set cannot be used; the message names file and class."""


class LabelSet(dict):
    """Class name -> tuple of its subclass names, at least one, in the order of the class list it was loaded for.

    Attributes:
        about: how the set was made, as written in the file; {} when it does not say.
        changes: what cleaning changed while it was loaded.
    """

    def __init__(self, names: Mapping[str, Sequence[str]], about: Optional[dict] = None, changes: Sequence[Change] = ()):
        super().__init__((class_name, tuple(subclasses)) for class_name, subclasses in names.items())
        problems = [f"class {class_name!r} has no subclass" for class_name, subclasses in self.items() if not subclasses]
        if problems:
            raise LabelSetError("; ".join(problems) + "; give at least one name, such as the class name itself")
        self.about = dict(about or {})
        self.changes = tuple(changes)

    @property
    def flat(self) -> tuple[list[str], list[str]]:
        """All subclass names one after the other, and the class of each."""
        pairs = [(name, class_name) for class_name, names in self.items() for name in names]
        return [name for name, _ in pairs], [class_name for _, class_name in pairs]

    def save(self, path) -> None:
        """Writes the file in one step (a reader sees the old one or the new one), with `about` where there is any."""
        content = {class_name: list(names) for class_name, names in self.items()}
        if self.about:
            content = {ABOUT: self.about, **content}
        with atomic_write(path, "w") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def load_label_set(
    path,
    class_names: Optional[Sequence[str]] = None,
    clean: bool = True,
    keep_duplicates: bool = False,
    renames: Optional[Mapping[str, str]] = None,
) -> LabelSet:
    """Reads and checks a label set.

    Args:
        path: the JSON file.
        class_names: the classes that it must have, no more and no less; the result has their spelling and order. Case, blanks
            and underscores make no difference. None for the classes of the file.
        clean: strip, make blanks of underscores, take bracketed expansions and repetitions out; False leaves every string as
            it stands in the file, for equality with published numbers.
        keep_duplicates: clean, but leave repetitions in (they count as often as they stand).
        renames: class name in the file -> class name wanted, such as {"table": "diningtable"}.

    Raises:
        LabelSetError: no JSON object of lists of strings, a class without a name, or other classes than `class_names`; all
            problems of the file in one message.
    """
    path = Path(path)
    content = _read(path)
    about = content.pop(ABOUT, {})
    problems = [problem for key, value in content.items() for problem in _problems(key, value)]
    if problems:
        raise LabelSetError(_message(path, problems))
    content = _in_order_of(path, _renamed(path, content, renames or {}), class_names)
    names, changes = {}, []
    for class_name, subclasses in content.items():
        if clean:
            subclasses, changed = clean_names(class_name, subclasses, keep_duplicates)
            changes.extend(changed)
        names[class_name] = tuple(subclasses)
    empty = [f"class {class_name!r} has no name left after cleaning" for class_name, subclasses in names.items() if not subclasses]
    if empty:
        raise LabelSetError(_message(path, empty))
    return LabelSet(names, about if isinstance(about, dict) else {"note": about}, changes)


def _read(path: Path) -> dict:
    """The JSON object in the file, a repeated key refused. Raises LabelSetError."""

    def once(pairs):
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        if repeated:
            raise LabelSetError(f"{path}: {', '.join(map(repr, repeated))} stands twice; merge the two lists")
        return dict(pairs)

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise LabelSetError(f"{path}: no such label set; write one with `ofaseg subclasses generate`") from error
    except UnicodeDecodeError as error:
        raise LabelSetError(f"{path}: not a UTF-8 text file ({error.reason})") from error
    try:
        content = json.loads(text, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise LabelSetError(f"{path}: not JSON ({error}); write {{class name: [subclass names]}}") from error
    if not isinstance(content, dict):
        raise LabelSetError(f"{path}: holds a {type(content).__name__}; write a JSON object {{class name: [subclass names]}}")
    if not set(content) - {ABOUT}:
        raise LabelSetError(f"{path}: holds no class; write {{class name: [subclass names]}}")
    return content


def _problems(key: str, value) -> list[str]:
    """What is wrong with an entry, in words."""
    if not key.strip():
        return ["a class without a name"]
    if isinstance(value, str):
        return [f"class {key!r} holds the string {value[:40]!r}, which would be read letter by letter; write a list, [{value[:40]!r}]"]
    if not isinstance(value, list):
        return [f"class {key!r} holds a {type(value).__name__}; write a list of names"]
    if not value:
        return [f"class {key!r} has an empty list; give at least one name, such as the class name itself"]
    return [
        f"class {key!r}, name {number}: {str(name)[:40]!r} is no {'string' if not isinstance(name, str) else 'name'}"
        for number, name in enumerate(value, 1)
        if not isinstance(name, str) or not name.strip()
    ]


def _renamed(path: Path, content: dict, renames: Mapping[str, str]) -> dict:
    unknown = [name for name in renames if name not in content]
    if unknown:
        raise LabelSetError(f"{path}: has no class {', '.join(map(repr, unknown))} to rename; its classes: {_listing(list(content))}")
    renamed = {renames.get(key, key): value for key, value in content.items()}
    if len(renamed) < len(content):
        raise LabelSetError(f"{path}: two classes have one name after renaming {dict(renames)}")
    return renamed


def _in_order_of(path: Path, content: dict, class_names: Optional[Sequence[str]]) -> dict:
    """The entries under the names of `class_names`, in their order."""
    by_form: dict[str, str] = {}
    for key in content:
        other = by_form.setdefault(normal_form(key), key)
        if other != key:
            raise LabelSetError(f"{path}: {other!r} and {key!r} are one class; merge the two lists")
    if class_names is None:
        return {key.strip(): value for key, value in content.items()}
    wanted = {normal_form(name): name for name in class_names}
    if len(wanted) < len(class_names):
        raise LabelSetError("two class names differ in case, blanks or underscores alone; a label set cannot tell them apart")
    missing = [name for form, name in wanted.items() if form not in by_form]
    extra = [key for form, key in by_form.items() if form not in wanted]
    if missing or extra:
        parts = [f"has no entry for {_listing(missing)}"] * bool(missing) + [
            f"has classes that are not asked for: {_listing(extra)}"
        ] * bool(extra)
        raise LabelSetError(f"{path}: {'; '.join(parts)}; correct the file, or say which class is which by renames, FILE_NAME=CLASS_NAME")
    return {name: content[by_form[form]] for form, name in wanted.items()}


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(map(repr, names[:MAX_SHOWN])) + more


def _message(path: Path, problems: Sequence[str]) -> str:
    more = [f"and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
    return f"{path}: " + "; ".join([*problems[:MAX_SHOWN], *more])
