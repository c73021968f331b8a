"""Official OFA and IFSeg checkpoints: key layout, report of what matched, configuration of the published code."""

import logging
from dataclasses import dataclass, field
from typing import Optional, Sequence

import torch
from torch import Tensor

from ofaseg.checkpoints.safe import load_state
from ofaseg.models.ofa.state import CLASS_KEYS
from ofaseg.models.state import CheckpointError
from ofaseg.vocabulary import ClassVocabulary, name_difference

logger = logging.getLogger(__name__)

WIDTHS = {128: "segofa_nano", 256: "segofa_tiny", 512: "segofa_medium", 768: "segofa_base", 1024: "segofa_large", 1280: "segofa_huge"}
"""Width of the word embedding -> named architecture."""

PRETRAINING_TASK = "vision_language_pretraining"
"""The task whose checkpoints hold class rows that belong to no class table in use."""


@dataclass
class LoadReport:
    """What became of a checkpoint's entries, by key.

    Attributes:
        matched: loaded as they were.
        missing: not in the file; they keep their start values (class rows: made from the names).
        unexpected: in the file but not used (values the model computes, or repetitions).
        resized: loaded with rows completed.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} entries matched"]
        for name, keys in (("missing", self.missing), ("not used", self.unexpected), ("resized", self.resized)):
            if keys:
                parts.append(f"{len(keys)} {name} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
        return "; ".join(parts)


def load_official(model, path) -> LoadReport:
    """Loads an official OFA or IFSeg file (or one of ours) into `model`, key by key.

    A file without class rows (OFA) starts them from the class names.

    Raises:
        CheckpointError: unreadable, foreign, or of another size, vocabulary or class count.
    """
    return load_weights(model, load_state(path)["model"], str(path))


def load_pretrained(model, path, class_names: Sequence[str] = ()) -> LoadReport:
    """As `load_official`, to start a new run: the file's class embeddings are kept only for the same classes.

    They are kept when the file is of a segmentation run that recorded the names `class_names` in this order (an official
    IFSeg file records them as `category_list`). Otherwise, and in a file that records no names, they start from the names
    of this run: rows of unknown classes would be taken for others, and rows that were not trained (the published setting)
    come out the same when they are made again.
    """
    state = load_state(path)
    weights = state["model"]
    reason = _why_new_classes(state, tuple(class_names), str(path))
    if reason:
        logger.info("%s: class embeddings are made from the class names of this run, since %s", path, reason)
        weights = {key: value for key, value in weights.items() if key not in CLASS_KEYS}
    else:
        logger.info("%s: its class embeddings are kept, they are of the same %d class names", path, len(class_names))
    return load_weights(model, weights, str(path))


def _why_new_classes(state: dict, class_names: tuple[str, ...], where: str) -> str:
    """Why the class rows of a loaded file are not those of `class_names`; "" when they are."""
    if not any(key in state["model"] for key in CLASS_KEYS):
        return "the file has none"
    if is_pretraining(state):
        return "pretraining changes the words they are made of"
    recorded = recorded_vocabulary(state, where)
    if recorded is None:
        return "the file does not say of which classes its own are"
    return name_difference(recorded.names, class_names)


def is_pretraining(state: dict) -> bool:
    """Whether a loaded file comes from pretraining: its class rows are older than the words they were made of."""
    return ((state["cfg"] or {}).get("task") or {}).get("_name") == PRETRAINING_TASK


def recorded_vocabulary(state: dict, where: str) -> Optional[ClassVocabulary]:
    """The classes that a loaded checkpoint (see `load_state`) says it was trained with; None when it says nothing."""
    cfg = state["cfg"] or {}
    data = cfg.get("vocabulary") or state["task_state"].get("vocabulary")
    if data:
        return ClassVocabulary.from_json(data, where)
    names = translate_configuration(cfg)[2]
    return ClassVocabulary(names=tuple(names), label_offset=1, ignore_label=0, source=where) if names else None


def load_weights(model, weights: dict[str, Tensor], where: str) -> LoadReport:
    """Loads a state dict into `model` and reports; errors begin with `where`."""
    state = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    given = set(state)
    try:
        upgrade = model.upgrade_state(state)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    torch.nn.Module.load_state_dict(model, state, strict=True)
    changed = set(upgrade.filled) | set(upgrade.resized)
    report = LoadReport(
        matched=[key for key in state if key in given and key not in changed],
        missing=[key for key in upgrade.filled if key not in given],
        unexpected=upgrade.dropped,
        resized=upgrade.resized,
    )
    logger.info("%s: %s", where, report)
    return report


def infer_architecture(weights: dict[str, Tensor], where: str) -> str:
    """The named architecture whose width the word embedding has. Raises CheckpointError for a foreign file."""
    words = next((weights[key] for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight") if key in weights), None)
    if words is None or words.ndim != 2 or words.shape[1] not in WIDTHS:
        found = "no word embedding" if words is None else f"a word embedding of shape {tuple(words.shape)}"
        raise CheckpointError(f"{where}: {found}; this is no OFA or IFSeg checkpoint")
    return WIDTHS[words.shape[1]]


def is_official_configuration(cfg: dict) -> bool:
    """Whether a checkpoint's configuration is the published code's, whose architecture names are ours too."""
    model, task = cfg.get("model") or {}, cfg.get("task") or {}
    return "tie_seg_projection" in model or "category_list" in task or "category_list" in model


def translate_configuration(cfg: dict) -> tuple[dict, dict, list[str]]:
    """(model options, task options, class names) of our classes from a published OFA or IFSeg configuration.

    The published code keeps booleans as the strings "true" and "false", and the class list as one comma-separated text.
    """
    model, task = cfg.get("model") or {}, cfg.get("task") or {}
    options = {
        key: int(model[key]) for key in ("patch_image_size", "orig_patch_image_size", "num_bins", "code_dict_size") if model.get(key)
    }
    for ours, theirs, wanted in (("full_context_alignment",) * 2 + (True,), ("untie_seg_projection", "tie_seg_projection", False)):
        if theirs in model:
            options[ours] = (str(model[theirs]).lower() == "true") == wanted
    if model.get("decoder_input_type"):
        options["decoder_input_type"] = str(model["decoder_input_type"])
    names = str(task.get("category_list") or model.get("category_list") or "")
    task_options = {
        key: task[key]
        for key in ("prompt_prefix", "patch_image_size", "num_bins", "code_dict_size", "resnet_topk")
        if task.get(key) is not None
    }
    return options, task_options, [name.strip() for name in names.split(",") if name.strip()]
