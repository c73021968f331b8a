"""Checks of run configurations: YAML of the hydra entry point, shell scripts that call fairseq-train."""

import dataclasses
import difflib
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import yaml

from ofaseg.data.shards import ShardError, load_vocabulary
from ofaseg.doctor.findings import Findings, finding, from_error
from ofaseg.vocabulary import VocabularyError, resolve_vocabulary

NAMED = ("task", "model", "criterion", "optimizer", "lr_scheduler")
"""Groups of a configuration whose entry is the name of a registered class."""
PATHS = ("data", "pretrained", "bpe_dir", "bert_vocab", "seg_data", "restore_file", "finetune_from_model")
_TRAIN_COMMAND = re.compile(r"^(.*/)?fairseq-train$|^(\w+_)?train$")
_TRAIN_LINE = re.compile(r"fairseq-train\s|^\s*(\w+_)?train\s")
_DEFAULTS = {"restore_file": "checkpoint_last.pt"}


@dataclass
class Settings:
    """What a configuration sets.

    Attributes:
        names: group of `NAMED` -> name of a registered class.
        options: option -> value as text; True for a flag without value.
    """

    names: dict[str, str] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)


def check_config(path: str, findings: Findings) -> None:
    """Checks one .yaml, .yml or .sh file."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    try:
        commands = _shell_settings(text) if path.endswith(".sh") else [_yaml_settings(yaml.safe_load(text))]
    except yaml.YAMLError as error:
        row = error.problem_mark.line if getattr(error, "problem_mark", None) else None
        message = f"not valid YAML ({str(error).splitlines()[0]})"
        findings.add(finding("bad_config", path, message, "correct the line; blanks, not tabs, indent YAML", row))
        return
    except ValueError as error:
        findings.add(finding("bad_config", path, str(error), "correct the line"))
        return
    for settings in commands:
        check_settings(settings, path, text, findings)


def _yaml_settings(content) -> Settings:
    """Settings of a parsed YAML file. Raises ValueError when it holds no groups."""
    if not isinstance(content, dict):
        raise ValueError("holds no groups such as task, model, criterion")
    settings = Settings()
    for entry in content.get("defaults") or ():
        if isinstance(entry, dict):
            settings.names |= {str(group): str(name) for group, name in entry.items() if group in NAMED}
    for group, values in content.items():
        if not isinstance(values, dict) or group == "hydra":
            continue
        if values.get("_name") is not None:
            settings.names[group] = str(values["_name"])
        settings.options |= {key: value for key, value in values.items() if not key.startswith("_") and value is not None}
    return settings


def _shell_settings(text: str) -> list[Settings]:
    """Settings of every training command of a shell script. Raises ValueError for an unclosed quotation in one."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if "train" not in line or line.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            if not _TRAIN_LINE.search(line):  # a text over several lines, say
                continue
            raise ValueError(f"{error} in `{line.strip():.60}`") from error
        start = next((k for k, word in enumerate(words) if _TRAIN_COMMAND.match(word)), None)
        if start is not None and any(word.startswith("--") for word in words[start:]):
            found.append(_command_settings(words[start + 1 :]))
    return found


def _command_settings(words: list[str]) -> Settings:
    settings = Settings()
    if words and not words[0].startswith("-"):
        settings.options["data"] = words[0]
    for k, word in enumerate(words):
        if not word.startswith("--") or word == "--":
            continue
        key, equals, value = word[2:].partition("=")
        following = words[k + 1] if k + 1 < len(words) else "--"
        settings.options[key.replace("-", "_")] = value if equals else True if following.startswith("--") else following
    for flag, group in (("arch", "model"), *((name, name) for name in NAMED)):
        if flag in settings.options:
            settings.names[group] = str(settings.options.pop(flag))
    return settings


def check_settings(settings: Settings, path: str, text: str, findings: Findings) -> None:
    """Names that must be registered, options that must exist, files that must be there, and class lists that must agree.

    Args:
        text: the content of the file, where lines are looked up; "" for none.
    """
    known = _registered()
    for group, name in settings.names.items():
        if group in known and not _is_open(name) and name not in known[group]:
            message = f"{group} {name!r} is not registered{_near(name, known[group])}"
            cure = "correct the name, or add the --user-dir that registers it"
            findings.add(finding("unknown_name", path, message, cure, _line_of(text, name), group))
    fields = _known_options(settings)
    for key in settings.options if fields else ():
        if key not in fields:
            message = f"no part of this run has the option {key!r}{_near(key, fields)}"
            row = _line_of(text, key) if key in text else _line_of(text, key.replace("_", "-"))
            findings.add(finding("unknown_name", path, message, "correct or remove it", row, key))
    _check_paths(settings, path, text, findings)
    _check_classes(settings, path, text, findings)


def _is_open(value) -> bool:
    """Whether a value is only known when the run starts: a variable, an interpolation, a mandatory value."""
    return not isinstance(value, str) or "$" in value or value in ("", "???")


def _near(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _line_of(text: str, word: str) -> Optional[int]:
    return next((k for k, line in enumerate(text.splitlines()) if word in line), None)


def _there(value: str, path: str) -> Optional[Path]:
    """The file or folder that a value names, seen from the current folder or that of the configuration."""
    candidates = (Path(value).expanduser(), Path(path).parent / value)
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _check_paths(settings: Settings, path: str, text: str, findings: Findings) -> None:
    for key in PATHS:
        value = settings.options.get(key)
        if _is_open(value) or value == _DEFAULTS.get(key) or _there(value, path):
            continue
        for place in _places(key, value, settings):
            if not _there(place, path):
                message = f"{key} is {place}, which does not exist here"
                findings.add(finding("missing_input", path, message, "correct the path or make the file first", _line_of(text, place), key))


def _places(key: str, value: str, settings: Settings) -> list[str]:
    """The files and folders that an option names: image-text data may be several, each with the folder of its images behind a colon."""
    if key == "data" and settings.names.get("task") == "image_text_pretraining":
        return [place.partition(":")[0].strip() for place in value.split(",") if place.strip()]
    return [value]


def _check_classes(settings: Settings, path: str, text: str, findings: Findings) -> None:
    """Class names of the configuration against those of its data folder."""
    names, data = settings.options.get("class_names", ""), settings.options.get("data")
    if not names or _is_open(names):
        return
    folder = None if _is_open(data) else _there(data, path)
    listed = _there(names, path) if "," not in names else None
    try:
        resolve_vocabulary(str(listed or names), load_vocabulary(folder) if folder else None, bool(settings.options.get("rename_classes")))
    except (VocabularyError, ShardError) as error:
        item = from_error("classes_differ", error, path, _line_of(text, names), "class_names")
        findings.add(item)


def _registered() -> dict[str, set[str]]:
    """Group of `NAMED` -> names that fairseq and this toolkit register."""
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_REGISTRY

    import ofaseg  # noqa: F401  registers tasks, models and criterions

    known = {name: set(REGISTRIES[name]["registry"]) for name in ("criterion", "optimizer", "lr_scheduler")}
    return known | {"task": set(TASK_REGISTRY), "model": set(ARCH_MODEL_REGISTRY) | set(MODEL_REGISTRY)}


def _known_options(settings: Settings) -> set[str]:
    """Every option that fairseq and the named parts have; empty when a part is unknown or has no dataclass."""
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_DATACLASS_REGISTRY

    groups = [item.type for item in dataclasses.fields(FairseqConfig) if dataclasses.is_dataclass(item.type)]
    tables = {"task": TASK_DATACLASS_REGISTRY, "model": MODEL_DATACLASS_REGISTRY}
    for group in NAMED:
        name = settings.names.get(group)
        if name is None:
            if group in ("task", "model", "criterion"):
                return set()
            continue
        table = tables[group] if group in tables else REGISTRIES[group]["dataclass_registry"]
        part = table.get(ARCH_MODEL_NAME_REGISTRY.get(name, name) if group == "model" else name)
        if part is None:
            return set()
        groups.append(part)
    options = set(NAMED) | {"arch"}
    for item in (item for group in groups for item in dataclasses.fields(group)):
        alias = item.metadata.get("argparse_alias") if item.metadata else None
        options |= {item.name} | ({str(alias).lstrip("-").replace("-", "_")} if alias else set())
    return options
