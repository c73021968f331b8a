"""Official SimSeg checkpoints: what architecture a file is of, class vectors kept between runs, and the way back to the official layout."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor

from ofaseg.atomic import atomic_write
from ofaseg.models.simseg_state import POSITIONS, to_official
from ofaseg.models.state import CheckpointError

logger = logging.getLogger(__name__)

WIDTHS = {384: "simseg_vit_s", 768: "simseg_vit_b"}
"""Width of the image tower -> named architecture of the published files."""

CACHE_VARIABLE = "OFASEG_CACHE"
"""Environment variable with the folder of kept class vectors; empty switches keeping off. Default: ~/.cache/ofaseg."""

TEXT_ENTRIES = ("text_encoder.", "text_projection.")


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


# ---- class vectors between runs ----


def keep_class_embeddings(model, prompts: Sequence) -> None:
    """Gives `model` its class vectors from the cache, or computes and stores them: 80 prompts a class are minutes on a CPU.

    The file is found by the sha256 of the text tower's weights and of the prompts, so it never is of another checkpoint,
    class list or template set. A folder that cannot be written costs nothing but the next run's time.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    folder = os.environ.get(CACHE_VARIABLE)
    if folder is None:
        folder = os.path.expanduser("~/.cache/ofaseg")
    if not folder:
        return
    path = Path(folder) / "class_vectors" / f"{_fingerprint(model, prompts)}.safetensors"
    try:
        model.keep_class_embeddings(_checked(load(path.read_bytes())["vectors"], len(prompts), model.config.projection_dim))
        return
    except (FileNotFoundError, NotADirectoryError):
        pass  # the first run with this checkpoint and these classes
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        logger.warning("%s: class vectors cannot be read (%s); they are made again", path, error)
    vectors = model.class_embeddings()
    try:
        with atomic_write(path) as file:
            file.write(save({"vectors": vectors.cpu()}))
    except OSError as error:
        logger.warning("%s: class vectors cannot be kept (%s); set %s to a folder that can be written", path, error, CACHE_VARIABLE)


def _checked(vectors: Tensor, classes: int, dim: int) -> Tensor:
    """`vectors` themselves; raises ValueError unless they are finite (classes, dim)."""
    if vectors.shape != (classes, dim) or not torch.isfinite(vectors).all():
        raise ValueError(f"shape {tuple(vectors.shape)} instead of {(classes, dim)}, or not finite")
    return vectors


def _fingerprint(model, prompts: Sequence) -> str:
    digest = hashlib.sha256(json.dumps(prompts).encode())
    for key, value in sorted(model.state_dict().items()):
        if key.startswith(TEXT_ENTRIES):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
