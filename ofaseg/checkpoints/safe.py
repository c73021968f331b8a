"""Loading checkpoint files without running anything that stands in them.

Torch files go through torch's restricted unpickler (`weights_only=True`). Classes that old fairseq checkpoints mention
(OmegaConf containers, enums, dataclasses) are replaced by an inert record of what was stored, so no code of theirs runs
and they need not be installed; anything else in a file is an error.
"""

import argparse
import collections
import enum
import hashlib
import json
import pickle
import re
import zipfile
from pathlib import Path

import torch

from ofaseg.checkpoints.torchscript import archive_weights, is_torchscript
from ofaseg.models import clip_state, simseg_state
from ofaseg.models.state import CheckpointError

HARMLESS_MODULES = ("omegaconf.", "fairseq.", "numpy.", "typing.", "enum.", "argparse.", "collections.", "__main__.")
"""Classes of these modules may be mentioned by a file; they are read as inert records."""

WEIGHT_ENTRIES = ("model", "state_dict", "model_state_dict")
"""Where a training program keeps the weights: fairseq, SimSeg, an older SimSeg."""

_UNKNOWN_CLASS = re.compile(r"(?:GLOBAL|Unsupported global:? GLOBAL) ([\w.]+)")


class _Record:
    """Stands in for an object of a class that is not loaded: constructor arguments and state, nothing else."""

    arguments: tuple = ()
    state = None

    def __new__(cls, *args, **kwargs):
        record = object.__new__(cls)
        record.arguments = args
        return record

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        self.state = state


def load_state(path) -> dict:
    """Reads a checkpoint file onto the CPU.

    Returns: a dict with ``model`` (state dict: name -> tensor), ``ema`` (averaged weights of a run with --store-ema, else
        empty), ``cfg`` (plain dict of the run's configuration, or None) and ``task_state`` (dict). For a safetensors file
        the configuration is the JSON file of the same stem beside it.

    Raises:
        CheckpointError: the file is missing, damaged, holds classes that have no place in a checkpoint, or no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: checkpoint not found; check the path")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    content = _load_torch(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint with weights by name; give a model checkpoint")
    entry = next((name for name in WEIGHT_ENTRIES if isinstance(content.get(name), dict)), None)
    weights = content if entry is None else content[entry]
    if not isinstance(weights, dict) or not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(
            f"{path}: no weights by name in it (entries: {', '.join(map(str, list(content)[:6]))}); give a model checkpoint"
        )
    cfg = content.get("cfg") if weights is not content else None
    if cfg is None and weights is not content and content.get("args") is not None:
        args = plain(content["args"])
        cfg = {"model": args, "task": args}
    weights = {key: value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    extra = content.get("extra_state") if weights is not content else None
    averaged = extra.get("ema") if isinstance(extra, dict) else None
    averaged = {key: value for key, value in (averaged or {}).items() if isinstance(value, torch.Tensor)}
    return {"model": _under_our_names(weights), "ema": averaged, "cfg": plain(cfg), "task_state": plain(content.get("task_state")) or {}}


def load_configuration(path) -> dict:
    """The configuration recorded with a checkpoint (option group -> option -> value), {} when it has none; reads no weights.

    Raises:
        CheckpointError: as `load_state`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: checkpoint not found; check the path")
    if path.suffix == ".safetensors":
        about = path.with_suffix(".json")
        return (_read_description(about) if about.is_file() else None) or {}
    content = _load_torch(path, mmap=True)
    cfg = plain(content.get("cfg")) if isinstance(content, dict) else None
    return cfg if isinstance(cfg, dict) else {}


def _load_safetensors(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); copy or export it again") from error
    about = path.with_suffix(".json")
    cfg = None
    if about.is_file():
        cfg = _read_description(about)
        _check_weights(cfg, about, path)
    return {"model": _under_our_names(weights), "ema": {}, "cfg": cfg, "task_state": {}}


def _under_our_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of official SimSeg and CLIP files under our names; others as they are."""
    if "prompt.class_prompt" in weights:
        return weights  # FreeSeg's of ours, whose towers alone would look like CLIP
    if simseg_state.is_official(weights):
        return simseg_state.to_ours(weights)
    return clip_state.to_ours(weights) if clip_state.is_clip(weights) else weights


def _read_description(about: Path) -> dict:
    """The JSON file beside exported weights. Raises CheckpointError when it is no description."""
    try:
        cfg = json.loads(about.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{about}: not valid JSON ({error}); export the model again") from error
    if not isinstance(cfg, dict):
        raise CheckpointError(f"{about}: needs a JSON object that describes {about.stem}.safetensors; export the model again")
    return cfg


def _check_weights(cfg: dict, about: Path, path: Path) -> None:
    """Raises CheckpointError when the JSON file describes other weights."""
    expected = cfg.get("weights_sha256")
    if expected and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise CheckpointError(f"{path}: does not belong to {about.name} (its sha256 differs): a partial copy or export; copy both again")


def _load_torch(path: Path, mmap: bool = False):
    """`torch.load(weights_only=True)`, learning the harmless classes of the file on the way; of a TorchScript archive its weights.

    With `mmap` the weights stay on the disk until they are used; files in torch's old format are read whole all the same.
    """
    is_archive = zipfile.is_zipfile(path)
    if is_archive and is_torchscript(path):
        return archive_weights(path)
    mmap = mmap and is_archive
    allowed: list = [argparse.Namespace, collections.defaultdict, dict, list, tuple, set, frozenset, int, float, bool, str]
    names: set[str] = set()
    while True:
        # leaving the context forgets what it added, so it must not add what the process allows anyway
        more = [item for item in allowed if item not in torch.serialization.get_safe_globals()]
        try:
            with torch.serialization.safe_globals(more):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            name = _UNKNOWN_CLASS.search(str(error))
            if name is None:
                # torch's own text recommends weights_only=False, which would run code of the file
                raise CheckpointError(
                    f"{path}: not a checkpoint that can be read safely, or damaged; give a .pt file of fairseq-train, an official "
                    "checkpoint, or an exported .safetensors"
                ) from error
            full = name.group(1)
            if full in names or not full.startswith(HARMLESS_MODULES):
                raise CheckpointError(
                    f"{path}: mentions {full}, which has no place in a checkpoint; it was not loaded. Use a file from a source you trust, "
                    "or convert it to safetensors there"
                ) from error
            names.add(full)
            allowed.append((type(full.rpartition(".")[2], (_Record,), {}), full))
        except (RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged, or not a checkpoint ({_first_line(error)}); copy it again") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def plain(value):
    """Configuration objects as plain Python: OmegaConf containers, namespaces, enums and inert records become dict, list, scalars."""
    if isinstance(value, argparse.Namespace):
        return plain(vars(value))
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, _Record):
        return _plain_record(value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    return value


def _plain_record(record: _Record):
    """What an inert record stood for: the content of an OmegaConf node, the value of an enum, the fields of an object."""
    state = record.state
    if isinstance(state, tuple) and state and isinstance(state[0], dict):
        state = state[0]
    if isinstance(state, dict):
        for content in ("_content", "_val"):
            if content in state:
                return plain(state[content])
        return plain(state)
    return plain(record.arguments[0]) if len(record.arguments) == 1 else None
