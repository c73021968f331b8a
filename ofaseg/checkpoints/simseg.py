"""Official SimSeg checkpoints: what architecture a file is of, and the way back to the official layout."""

import torch
from torch import Tensor

from ofaseg.atomic import atomic_write
from ofaseg.models.simseg_state import POSITIONS, to_official
from ofaseg.models.state import CheckpointError

WIDTHS = {384: "simseg_vit_s", 768: "simseg_vit_b"}
"""Width of the image tower -> named architecture of the published files."""


def is_simseg(weights: dict[str, Tensor]) -> bool:
    """Whether a loaded state dict is SimSeg's (`load_state` has renamed the official entries)."""
    return POSITIONS in weights


def infer_architecture(weights: dict[str, Tensor], where: str) -> str:
    """The named architecture of a published file. Raises CheckpointError for another width."""
    width = weights[POSITIONS].shape[-1]
    if width not in WIDTHS:
        known = ", ".join(f"{dim}: {name}" for dim, name in WIDTHS.items())
        raise CheckpointError(f"{where}: a SimSeg image tower {width} wide; the published ones are {known}")
    return WIDTHS[width]


def export_official(model, path) -> None:
    """Writes the weights in the official layout, {"state_dict": ...}, for the published evaluation scripts."""
    weights = {key: value.detach().cpu().clone() for key, value in to_official(model.state_dict()).items()}
    with atomic_write(path) as file:
        torch.save({"state_dict": weights}, file)
