"""CLIP checkpoints, OpenAI's and open_clip's: what architecture a file is of, and how it is evaluated."""

import json
import logging
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from ofaseg.models.clip_state import COUNTERS, POSITIONS, PREFIX
from ofaseg.models.state import CheckpointError

logger = logging.getLogger(__name__)

TOWERS = {(768, 16): "clip_vit_b_16", (768, 32): "clip_vit_b_32", (1024, 14): "clip_vit_l_14", (64, 8): "clip_nano"}
"""(width of the image tower, patch in pixels) -> named architecture."""

TASK_OPTIONS = dict(text_tokenizer="clip_bpe", resize="short_side", patch_image_size=336, resnet_prob_temperature=0.025)
"""How dense CLIP is evaluated in the literature (SCLIP, NACLIP: short side 336, cosines times 40), for files that do not say."""

CONFIGURATION = "open_clip_config.json"


def infer_architecture(weights: dict[str, Tensor], where: str) -> tuple[str, dict]:
    """(named architecture, options) whose sizes a file has; `weights` under our names (`clip_state.to_ours`).

    The option `plain_gelu` is there only if the file or an open_clip_config.json beside it says which activation it was trained with.

    Raises:
        CheckpointError: another kind of tower, or sizes that no named architecture has.
    """
    check_kind(weights, where)
    width, patch = weights[f"{PREFIX}visual.conv1.weight"].shape[0], weights[f"{PREFIX}visual.conv1.weight"].shape[-1]
    if (width, patch) not in TOWERS:
        known = ", ".join(f"{name} ({dim}, {side})" for (dim, side), name in TOWERS.items())
        raise CheckpointError(f"{where}: a CLIP whose image tower is {width} wide, with patches of {patch} pixels; known are {known}")
    from ofaseg.models.clip_dense import architecture_config

    name = TOWERS[width, patch]
    sizes = architecture_config(name)
    text_width = weights[f"{PREFIX}ln_final.weight"].shape[0]
    options = dict(
        image_size=patch * int((len(weights[POSITIONS]) - 1) ** 0.5),
        image_layers=_layers(weights, f"{PREFIX}visual.transformer.resblocks."),
        text_layers=_layers(weights, f"{PREFIX}transformer.resblocks."),
        text_width=text_width,
        text_heads=max(1, text_width // (sizes.text_width // sizes.text_heads)),  # all of a family's heads are equally wide
        projection_dim=weights[f"{PREFIX}text_projection"].shape[-1],
        context_length=len(weights[f"{PREFIX}positional_embedding"]),
        vocab_size=len(weights[f"{PREFIX}token_embedding.weight"]),
    )
    plain_gelu = known_activation(weights, where)
    return name, options | ({} if plain_gelu is None else {"plain_gelu": plain_gelu})


def check_kind(weights: dict[str, Tensor], where: str) -> None:
    """Raises CheckpointError, which says what they are, for weights (under our names) of no CLIP with two transformers of its own."""
    if any(key.startswith((f"{PREFIX}vision_model.", f"{PREFIX}text_model.")) for key in weights):
        raise CheckpointError(f"{where}: CLIP in the layout of transformers; give OpenAI's or open_clip's file of the same model")
    image = ("visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding", "visual.proj")
    text = ("token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection")
    for kind, names in (("image tower is no vision transformer of CLIP's own kind", image), ("text tower is not CLIP's own", text)):
        missing = [name for name in names if weights.get(PREFIX + name) is None or weights[PREFIX + name].ndim == 0]
        if missing:
            raise CheckpointError(f"{where}: a model whose {kind} (no {', '.join(missing)}); ViT-B/16, ViT-B/32 and ViT-L/14 can be read")


def _layers(weights: dict[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})


def known_activation(weights: dict[str, Tensor], where: str) -> Optional[bool]:
    """Whether a model was trained with GELU instead of QuickGELU; None where nothing says so.

    OpenAI's files hold counters beside the weights, and matrices in half precision beside norms in single.
    """
    mixed = weights[f"{PREFIX}visual.proj"].dtype == torch.float16 and weights[f"{PREFIX}ln_final.weight"].dtype == torch.float32
    if mixed or any(PREFIX + name in weights for name in COUNTERS):
        return False
    about = Path(where).with_name(CONFIGURATION)
    if not about.is_file():
        return None
    try:
        sizes = json.loads(about.read_text(encoding="utf-8"))["model_cfg"]
        return not sizes.get("quick_gelu", False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{about}: not the configuration of a model of open_clip ({error}); copy it again or remove it") from error


def warn_of_activation(path, options: dict) -> None:
    """Says what is assumed when `options` of a CLIP file, with the user's, do not say the activation."""
    if "plain_gelu" not in options:
        logger.warning(
            "%s: the file does not say which activation it was trained with; QuickGELU (OpenAI's) is assumed. For a model trained with "
            "open_clip without QuickGELU, give --override plain_gelu=true",
            path,
        )
