"""The key layout of published Fusioner checkpoints: towers whole, beside the fusion and the decoder, which are called as here."""

from torch import Tensor

from ofaseg.models.frozen_towers import KINDS, FrozenTowers
from ofaseg.models.state import CheckpointError, StateUpgrade, check_entries

TRAINED = ("fusion.", "decoder.")
OFFICIAL_TOWERS = {"img_model.": ("image", "visual."), "text_model.": ("text", "clip.")}
"""Prefix of the published key -> (tower, prefix of the tower's own state dict)."""
FOREIGN = "this is no Fusioner checkpoint of the architecture that was asked for"
ADVICE = "Check --arch, or give the file itself as the checkpoint: its sizes are read from it"


def is_fusioner(state: dict) -> bool:
    """Whether a state dict is Fusioner's, published or ours."""
    return {"fusion.cls_emb", "decoder.conv_4.weight"} <= {key.removeprefix("module.") for key in state}


def has_towers(state: dict) -> bool:
    """Whether a state dict holds the weights of the towers, as published ones do."""
    return any(key.removeprefix("module.").startswith(tuple(OFFICIAL_TOWERS)) for key in state)


def to_official(trained: dict[str, Tensor], towers: FrozenTowers) -> dict[str, Tensor]:
    """The published layout: towers first, then fusion and decoder.

    Raises:
        CheckpointError: a tower is not CLIP's; the published layout knows no other.
    """
    official = {}
    for published, (kind, own) in OFFICIAL_TOWERS.items():
        state = getattr(towers, kind).state_dict()
        if not all(key.startswith(own) for key in state):
            raise CheckpointError(f"the published layout holds towers of CLIP only; the {kind} tower is another one")
        official.update({published + key.removeprefix(own): value for key, value in state.items()})
    return official | {key: value for key, value in trained.items() if key.startswith(TRAINED)}


def upgrade_state(state: dict[str, Tensor], own: dict[str, Tensor], towers: FrozenTowers, made_of: dict[str, str]) -> StateUpgrade:
    """Changes `state` in place so that a model with the entries `own` loads it strictly.

    Towers in the state are loaded into `towers` at once; of a state without towers, the sha256 of both are compared.

    Args:
        own: the model's entries; of those of `towers.` only the names and shapes count.
        made_of: kind of tower -> what to call the file that it was loaded from.

    Raises:
        CheckpointError: an entry is missing, unknown or of another shape, or a tower is another one than in training.
    """
    entries = {key.removeprefix("module."): value for key, value in state.items()}
    report = StateUpgrade()
    if has_towers(entries):
        _fill_towers(entries, towers)
        entries.update({f"towers.{kind}_sha256": towers.sha256(kind) for kind in KINDS})
    check_entries(entries, own, FOREIGN, ADVICE)
    for kind, file in made_of.items():
        towers.check(kind, entries[f"towers.{kind}_sha256"], file)
    state.clear()
    state.update(entries)
    return report


def _fill_towers(entries: dict[str, Tensor], towers: FrozenTowers) -> None:
    """Moves the published entries of both towers out of `entries` into `towers`."""
    for published, (kind, own) in OFFICIAL_TOWERS.items():
        tower = getattr(towers, kind)
        weights = {own + key.removeprefix(published): entries.pop(key) for key in list(entries) if key.startswith(published)}
        check_entries(weights, tower.state_dict(), FOREIGN, ADVICE)
        towers.fill(kind, weights)
