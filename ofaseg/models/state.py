"""What every model's loading of foreign state dicts shares: the error, the report, the check of keys and shapes."""

from dataclasses import dataclass, field

from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint cannot be used: unreadable, foreign, of another size, vocabulary or class list."""


@dataclass
class StateUpgrade:
    """What making a state dict loadable did, by key.

    Attributes:
        dropped: entries removed (computed by the model, aliases, or parts that no model here has).
        filled: entries that were missing and now hold the model's own start values.
        resized: entries whose rows were completed or interpolated.
    """

    dropped: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)


def check_entries(state: dict[str, Tensor], own: dict[str, Tensor], foreign: str, advice: str) -> None:
    """Raises CheckpointError (`foreign`; the first few problems; `advice`) for missing, unknown or misshapen entries of `state`."""
    problems = [f"{key}: missing" for key in own if key not in state]
    problems += [f"{key}: unknown" for key in state if key not in own]
    problems += [
        f"{key}: shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{foreign}; {'; '.join(problems[:5])}{more}. {advice}")
