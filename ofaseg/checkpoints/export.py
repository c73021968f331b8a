"""Models as safetensors + JSON: weights that any tool can read, and everything needed to build the model again."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from ofaseg.atomic import atomic_write
from ofaseg.models.state import CheckpointError
from ofaseg.vocabulary import ClassVocabulary

FORMAT = "ofaseg-model"
FORMAT_VERSION = 1
LOCAL_OPTIONS = ("data", "pretrained", "seg_data")
"""Task options that name places on one machine; they are left out of the exported configuration."""
COMPANIONS = {"bert_vocab": "vocab.txt", "clip_bpe": "bpe_simple_vocab_16e6.txt.gz", "templates": "", "subclasses": ""}
"""Task options that may name a file which the model needs, and the file's name where the option is its folder."""

TOWER_FILES = ("clip_checkpoint", "image_checkpoint", "text_checkpoint", "text_embeddings")
"""Model options that name the file of a frozen tower, which is looked for beside the exported model; it is not copied."""


def export_safetensors(
    model, cfg, path, vocabulary: Optional[ClassVocabulary] = None, dtype: Optional[torch.dtype] = None, notes: Optional[dict] = None
) -> dict:
    """Writes `path` (ending in .safetensors) and the JSON file of the same stem beside it; each is written atomically.

    Args:
        model: a registered fairseq model; weights that share storage are stored once.
        cfg: the run's configuration, dict or DictConfig, with the groups ``model`` and ``task``.
        vocabulary: the classes of the model's class embeddings.
        dtype: of the stored float weights, such as torch.float16; None keeps them.
        notes: further JSON entries (seed, command, scores).

    Returns: what was written to the JSON file.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: an exported model ends in .safetensors")
    weights = save(_stored_tensors(model, dtype))
    groups = _plain_groups(cfg)
    task = {key: value for key, value in groups["task"].items() if key not in LOCAL_OPTIONS}
    for option in ("bpe_dir", *COMPANIONS):
        if task.get(option):
            task[option] = Path(task[option]).name
    for option in TOWER_FILES:
        if groups["model"].get(option):
            groups["model"][option] = Path(groups["model"][option]).name
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": groups["model"],
        "task": task,
        "vocabulary": None if vocabulary is None else vocabulary.to_json(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        **(notes or {}),
    }
    with atomic_write(path) as file:
        file.write(weights)
    with atomic_write(path.with_suffix(".json"), "w") as file:
        json.dump(about, file, indent=1, ensure_ascii=False)
        file.write("\n")
    return about


def copy_companions(options: Any, folder) -> list[Path]:
    """Copies the files that a task's `options` name (see `COMPANIONS`) into `folder`, so that an exported model can be moved.

    Returns: the copies; files that are there already count only where their content differs.

    Raises:
        OSError: a copy cannot be written.
    """
    copies = []
    for option, name in COMPANIONS.items():
        chosen = str(getattr(options, option, "") or "")
        source = Path(chosen, name) if name and Path(chosen).is_dir() else Path(chosen)
        if not chosen or not source.is_file():
            continue  # a built-in name, such as templates=imagenet80
        copy, content = Path(folder) / source.name, source.read_bytes()
        if copy.is_file() and copy.read_bytes() == content:
            continue
        with atomic_write(copy) as file:
            file.write(content)
        copies.append(copy)
    return copies


def _stored_tensors(model, dtype: Optional[torch.dtype]) -> dict[str, Tensor]:
    """The state dict without repetitions, on the CPU, in `dtype`."""
    tensors, seen = {}, set()
    for key, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape)
        if value.numel() and place in seen:
            continue
        seen.add(place)
        value = value.detach().cpu().contiguous()
        tensors[key] = value.to(dtype) if dtype is not None and value.is_floating_point() else value.clone()
    return tensors


def _plain_groups(cfg) -> dict[str, dict]:
    """{"model": {...}, "task": {...}} as plain dicts with plain values."""
    from omegaconf import OmegaConf

    groups = {}
    for group in ("model", "task"):
        part = cfg[group] if isinstance(cfg, dict) or OmegaConf.is_config(cfg) else getattr(cfg, group)
        if OmegaConf.is_config(part):
            part = OmegaConf.to_container(part, resolve=True, enum_to_str=True)
        elif dataclasses.is_dataclass(part):
            part = {key: value for key, value in vars(part).items() if isinstance(value, str | int | float | bool | list | None)}
        groups[group] = {key: value for key, value in dict(part).items() if value != "???"}
    return groups
