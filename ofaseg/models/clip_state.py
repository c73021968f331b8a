"""The key layouts of CLIP, OpenAI's and open_clip's, to ours: open_clip's names behind one prefix."""

from torch import Tensor

from ofaseg.models.image_encoders.vit import interpolate_positions
from ofaseg.models.state import CheckpointError, StateUpgrade, check_entries

PREFIX = "clip."
COUNTERS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's files hold among the weights."""

POSITIONS = f"{PREFIX}visual.positional_embedding"
FOREIGN = "this is no CLIP checkpoint of the architecture that was asked for"


def is_clip(state: dict) -> bool:
    """Whether a state dict is of a model of CLIP's kind: OpenAI's, open_clip's or ours, or of a kind that only resembles them."""
    return any(_plain(key).startswith(("visual.", "vision_model.")) for key in state)


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official keys, with or without `module.` in front, text tower apart (`text.`) or not, under our names; our own keys stay."""
    return {PREFIX + _plain(key): value for key, value in state.items()}


def _plain(key: str) -> str:
    return key.removeprefix("module.").removeprefix(PREFIX).removeprefix("text.")


def upgrade_official_state(state: dict[str, Tensor], own: dict[str, Tensor]) -> StateUpgrade:
    """Changes `state` in place so that a model whose `state_dict()` is `own` loads it strictly; both may be of one tower alone.

    Counters and the causal mask, which the model computes, are dropped; positions of another square grid are interpolated.

    Raises:
        CheckpointError: an entry is missing, unknown or of another shape.
    """
    report = StateUpgrade()
    entries = to_ours(state)
    for name in (*COUNTERS, "attn_mask"):
        if entries.pop(PREFIX + name, None) is not None:
            report.dropped.append(PREFIX + name)
    positions, expected = entries.get(POSITIONS), own.get(POSITIONS)
    if positions is not None and expected is not None and positions.ndim == 2 and len(positions) != len(expected):
        side = int((len(expected) - 1) ** 0.5)
        try:
            entries[POSITIONS] = interpolate_positions(positions[None], side, side)[0]
        except ValueError as error:
            raise CheckpointError(f"{POSITIONS}: {error}") from error
        report.resized.append(POSITIONS)
    check_entries(entries, own, FOREIGN, "Check --arch, or give the file itself as the checkpoint: its sizes are read from it")
    state.clear()
    state.update(entries)
    return report
