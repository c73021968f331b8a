"""Fusioner's files: the towers' own, published checkpoints, and the way back to the published layout."""

import logging
import zipfile
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from ofaseg.atomic import atomic_write
from ofaseg.checkpoints import clip
from ofaseg.checkpoints.export import TOWER_FILES
from ofaseg.checkpoints.safe import load_state
from ofaseg.models.clip_state import PREFIX, to_ours, upgrade_official_state
from ofaseg.models.frozen_towers import CLIP, NOT_CHECKED
from ofaseg.models.fusioner_state import has_towers
from ofaseg.models.image_encoders.mobilenet_v2 import arrays_state
from ofaseg.models.simseg import ARCHITECTURES as SIMSEG
from ofaseg.models.simseg_state import to_ours as simseg_entries
from ofaseg.models.state import CheckpointError, check_entries

logger = logging.getLogger(__name__)

TASK_OPTIONS = dict(text_tokenizer="clip_bpe", templates="fusioner32", resize="square")
"""How published files are evaluated."""
FILE_OPTIONS = {"image": "image_checkpoint", "text": "text_checkpoint"}
"""Tower -> the option that names its file, where it is not CLIP's (`clip_checkpoint`)."""
TOWER_PREFIXES = ("", "module.", "module.base_encoder.", "base_encoder.", "backbone.", "module.backbone.", "encoder.", "model.", "bert.")
"""What stands before the entries of a tower in files of timm, DINO, MoCo v3 (the trained encoder), MAE and BERT."""
FOREIGN = "no weights of the tower that was asked for"


def load_towers(model, expected: Optional[dict[str, Tensor]] = None) -> None:
    """Reads the files of a Fusioner's frozen towers; those that have their weights already are left alone.

    Args:
        model: `ofaseg.models.fusioner.Fusioner`; its configuration names the files.
        expected: the weights of a checkpoint of ours, whose sha256 of the towers a message about a missing file tells.

    Raises:
        CheckpointError: no file is named, it is missing or unreadable, of another tower, or was trained with another activation.
    """
    files = {kind: file for kind, file in model.tower_files().items() if kind in model.towers.missing}
    tower_names = {"image": model.config.image_tower, "text": model.config.text_tower}
    of_clip = {kind: file for kind, file in files.items() if tower_names[kind] == CLIP}
    for kind, file in files.items():
        if file:
            _check_found(kind, file, _option(kind, kind in of_clip), expected)
        elif model.config.random_towers:
            model.towers.filled(kind)
        else:
            option = _option(kind, kind in of_clip).replace("_", "-")
            raise CheckpointError(
                f"the frozen {kind} tower {tower_names[kind]!r} needs its weights: give --{option} (a local file){_known(kind, expected)}"
            )
    if any(of_clip.values()):
        _load_clip(model, next(iter(of_clip.values())), tuple(of_clip))
    for kind, file in files.items():
        if file and kind not in of_clip:
            _load_other(model, kind, file)
    model.forget_text_vectors()


def _option(kind: str, is_clip: bool) -> str:
    return "clip_checkpoint" if is_clip else FILE_OPTIONS[kind]


def _known(kind: str, expected: Optional[dict[str, Tensor]]) -> str:
    """What a checkpoint of ours tells of the tower that it was trained with, to end a message."""
    entry = (expected or {}).get(f"towers.{kind}_sha256")
    digest = NOT_CHECKED if entry is None else bytes(entry.tolist())
    return "" if digest == NOT_CHECKED else f". The weights that the checkpoint was trained with have sha256 {digest.hex()}"


def _check_found(kind: str, file: str, option: str, expected: Optional[dict[str, Tensor]]) -> None:
    if not Path(file).is_file():
        raise CheckpointError(
            f"{file}: weights of the frozen {kind} tower not found; say where they are, such as --override {option}=FILE"
            f"{_known(kind, expected)}"
        )


def _load_clip(model, file: str, kinds: tuple[str, ...]) -> None:
    """The towers `kinds` out of a file of CLIP."""
    weights = to_ours(load_state(file)["model"])
    clip.check_kind(weights, file)
    known = clip.known_activation(weights, file)
    if known is None:
        clip.warn_of_activation(file, {"plain_gelu": True} if model.config.plain_gelu else {})
    elif known != bool(model.config.plain_gelu):
        names = {True: "GELU", False: "QuickGELU"}
        raise CheckpointError(
            f"{file}: trained with {names[known]}, but the towers are built with {names[not known]}; set plain_gelu={str(known).lower()}"
        )
    own = {}
    for kind in kinds:
        state = getattr(model.towers, kind).state_dict()
        own.update({(PREFIX + key if kind == "image" else key): value for key, value in state.items()})
    if set(kinds) != {"image", "text"}:
        image = kinds == ("image",)
        weights = {key: value for key, value in weights.items() if key.startswith(f"{PREFIX}visual.") == image}
    try:
        upgrade_official_state(weights, own)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    for kind in kinds:
        names = getattr(model.towers, kind).state_dict()
        model.towers.fill(kind, {key: weights[PREFIX + key if kind == "image" else key] for key in names})
    logger.info("%s: weights of the frozen %s", file, " and ".join(f"{kind} tower" for kind in kinds))


def _load_simseg(model, kind: str, file: str) -> None:
    """A tower of SimSeg out of a checkpoint of it, published or ours."""
    given, own = simseg_entries(load_state(file)["model"]), getattr(model.towers, kind).state_dict()
    weights = {key: given[key] for key in own if key in given}
    try:
        check_entries(weights, own, FOREIGN, f"Check {kind}_tower and the vocabulary, or give the file of this model")
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    model.towers.fill(kind, weights)
    logger.info("%s: weights of the frozen %s tower, SimSeg's", file, kind)


def _load_other(model, kind: str, file: str) -> None:
    """A tower of timm, BERT or SimSeg out of a file that may hold more (a head, a decoder, a pooler)."""
    if getattr(model.config, f"{kind}_tower") in SIMSEG:
        return _load_simseg(model, kind, file)
    given = _arrays(file) if file.endswith(".npz") else {_modern(key): value for key, value in load_state(file)["model"].items()}
    own = getattr(model.towers, kind).state_dict()
    inner = {key: key.split(".", 1)[1] for key in own} if kind == "image" else {key: key.removeprefix("tokens.bert.") for key in own}
    prefixes = sorted(TOWER_PREFIXES, key=lambda prefix: -sum(prefix + name in given for name in inner.values()))
    weights = {key: given[prefixes[0] + name] for key, name in inner.items() if prefixes[0] + name in given}
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):  # a counter of training that some files leave out
            weights.setdefault(key, value)
    try:
        check_entries(weights, own, FOREIGN, f"Check {kind}_tower, or give the file of this model")
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    model.towers.fill(kind, weights)
    logger.info("%s: weights of the frozen %s tower, %d entries not used", file, kind, len(given) - len(weights))


def _arrays(file: str) -> dict[str, Tensor]:
    """The weights in an .npz file."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays_state(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{file}: weights cannot be read ({error}); copy the file again") from error


def _modern(key: str) -> str:
    """An entry's name without the names that norms had in old files of BERT."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def find_files(options: dict, given: dict, path: Path) -> None:
    """Changes, in place, recorded model `options` that name a file which is gone to the file of that name beside the checkpoint `path`,
    where there is one; options that the user has `given` stay."""
    for option in TOWER_FILES:
        recorded = Path(options.get(option) or "")
        if recorded.name and option not in given and not recorded.exists() and path.with_name(recorded.name).exists():
            options[option] = str(path.with_name(recorded.name))


def prepare(model, weights: dict[str, Tensor]) -> None:
    """Before the `weights` of a checkpoint are loaded: reads the towers' files unless the checkpoint holds the towers itself.

    Raises:
        CheckpointError: as `load_towers`.
    """
    if not has_towers(weights):
        load_towers(model, weights)


def infer_architecture(weights: dict[str, Tensor], where: str) -> tuple[str, dict]:
    """(named architecture, options) whose sizes a published file has.

    The number of attention heads cannot be seen: 64 channels each, as published.

    Raises:
        CheckpointError: the file has no towers, or sizes that no named architecture has.
    """
    from ofaseg.models.fusioner import ARCHITECTURES

    if not has_towers(weights):
        raise CheckpointError(f"{where}: trained parts of Fusioner without a configuration; give the checkpoint that fairseq-train wrote")
    entries = {key.removeprefix("module."): value for key, value in weights.items()}
    towers = {key.replace("img_model.", "visual.").removeprefix("text_model."): value for key, value in entries.items()}
    towers = {key: value for key, value in towers.items() if not key.startswith(("fusion.", "decoder."))}
    family, options = clip.infer_architecture(to_ours(towers), where)
    name = family.replace("clip_", "fusioner_").replace("_b_", "_b").replace("_l_", "_l")
    width = entries["fusion.cls_emb"].shape[1]
    blocks = {key.split(".")[2] for key in entries if key.startswith("fusion.blocks.")}
    sizes = dict(fusion_width=width, fusion_layers=len(blocks))
    if name != "fusioner_nano":
        sizes["fusion_heads"] = max(1, width // 64)
    return name, ARCHITECTURES[name] | options | sizes | {"plain_gelu": False}


def export_official(model, path) -> None:
    """Writes towers, fusion and decoder in the published layout, {"model": ...}.

    Raises:
        CheckpointError: a tower is not CLIP's, or has no weights.
    """
    if model.towers.missing:
        raise CheckpointError("the frozen towers have no weights yet; load them first")
    weights = {key: value.detach().cpu().clone() for key, value in model.official_state().items()}
    with atomic_write(path) as file:
        torch.save({"model": weights}, file)
