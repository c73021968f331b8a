"""The official key layout of SimSeg: to ours, strictly, and back."""

import re

from torch import Tensor

from ofaseg.models.image_encoders.vit import interpolate_positions
from ofaseg.models.state import CheckpointError, StateUpgrade, check_entries

PREFIXES = (
    ("image_encoder.model.model.", "image_encoder.vit."),
    ("text_encoder.model.model.", "text_encoder.bert."),
    ("image_projection.linear.", "image_projection."),
    ("text_projection.linear.", "text_projection."),
    ("loss.temperature", "temperature"),
)
"""(official, ours)."""

UNUSED = re.compile(r"(^|\.)embeddings\.position_ids$|^text_encoder\.(model\.model|bert)\.pooler\.dense\.(weight|bias)$")
"""Entries that a file may have and this model has no use for: a counter, and a pooler that no output depends on."""

POSITIONS = "image_encoder.vit.pos_embed"
FOREIGN = "this is no SimSeg checkpoint of the architecture that was asked for"


def is_official(state: dict) -> bool:
    """Whether a state dict has SimSeg's official layout."""
    return any(key.removeprefix("module.") == "image_encoder.model.model.cls_token" for key in state)


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official keys, with or without `module.` in front, under our names; our own keys stay."""
    return {_renamed(key.removeprefix("module."), PREFIXES): value for key, value in state.items()}


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our keys under the official names."""
    return {_renamed(key, tuple((ours, official) for official, ours in PREFIXES)): value for key, value in state.items()}


def _renamed(key: str, prefixes) -> str:
    return next((new + key[len(old) :] for old, new in prefixes if key.startswith(old)), key)


def upgrade_official_state(state: dict[str, Tensor], own: dict[str, Tensor]) -> StateUpgrade:
    """Changes `state` in place so that a model whose `state_dict()` is `own` loads it strictly.

    Positions of another square grid are interpolated (digest: 224 px models read at 288 px).

    Raises:
        CheckpointError: an entry is missing, unknown or of another shape.
    """
    report = StateUpgrade()
    entries = to_ours(state)
    for key in [key for key in entries if UNUSED.search(key)]:
        del entries[key]
        report.dropped.append(key)
    positions, expected = entries.get(POSITIONS), own[POSITIONS]
    if positions is not None and positions.ndim == 3 and positions.shape[1] != expected.shape[1]:
        side = int((expected.shape[1] - 1) ** 0.5)
        try:
            entries[POSITIONS] = interpolate_positions(positions, side, side)
        except ValueError as error:
            raise CheckpointError(f"{POSITIONS}: {error}") from error
        report.resized.append(POSITIONS)
    check_entries(entries, own, FOREIGN, "Check --arch; for a vocabulary of another size, give the checkpoint's own vocab.txt")
    state.clear()
    state.update(entries)
    return report
