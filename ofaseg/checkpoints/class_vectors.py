"""Class vectors of dual encoders, kept between runs: 80 prompts a class are minutes on a CPU."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Callable, Sequence

import torch
from torch import Tensor

from ofaseg.atomic import atomic_write

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "OFASEG_CACHE"
"""Environment variable with the folder of kept class vectors; empty switches keeping off. Default: ~/.cache/ofaseg."""


def keep_text_vectors(model, prompts: Sequence) -> None:
    """Gives `model`, a `PromptedSegmenter`, the vectors of its classes and subclasses from the cache, or computes and stores them.

    The file is found by the sha256 of the text tower's weights and of the prompts, so it never is of another checkpoint,
    class list or template set. A folder that cannot be written costs nothing but the next run's time.
    """
    folder = os.environ.get(CACHE_VARIABLE)
    if folder is None:
        folder = os.path.expanduser("~/.cache/ofaseg")
    if not folder:
        return
    _keep(Path(folder), model, prompts, model.keep_class_embeddings, model.name_embeddings)
    if model.subclasses is not None:
        _keep(Path(folder), model, model.subclasses.flat, model.keep_subclass_embeddings, model.subclass_embeddings)


def _keep(folder: Path, model, prompts: Sequence, keep: Callable[[Tensor], None], make: Callable[[], Tensor]) -> None:
    """Hands the stored vectors of `prompts` to `keep`, or stores those that `make` returns."""
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    path = folder / "class_vectors" / f"{_fingerprint(model, prompts)}.safetensors"
    try:
        keep(_checked(load(path.read_bytes())["vectors"], len(prompts), model.text_dim))
        return
    except (FileNotFoundError, NotADirectoryError):
        pass  # the first run with this checkpoint and these classes
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        logger.warning("%s: class vectors cannot be read (%s); they are made again", path, error)
    vectors = make()
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
    digest.update(model.text_options().encode())
    for key, value in sorted(model.text_state().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
