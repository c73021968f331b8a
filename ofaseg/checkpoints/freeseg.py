"""FreeSeg checkpoints: what architecture a file is of, its parts (backbone, CLIP, prompts), and the way back to the official layout."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from ofaseg.atomic import atomic_write
from ofaseg.checkpoints.array_pickle import load_arrays
from ofaseg.checkpoints.safe import load_state
from ofaseg.models.clip_state import COUNTERS
from ofaseg.models.freeseg_state import to_official, to_ours
from ofaseg.models.state import CheckpointError, check_entries

logger = logging.getLogger(__name__)

HEAD_WIDTH = 64
"""Of an attention head in CLIP's towers."""
LEVELS, POINTS = 3, 4
"""Of the pixel decoder's attention, which together with its sizes tell the number of heads."""
UNUSED_OF_BACKBONES = ("fc.", "stem.fc.", "linear.")
"""Classifiers of ImageNet."""


def is_freeseg(weights: dict[str, Tensor]) -> bool:
    """Whether a state dict under our names (`to_ours`) is a whole FreeSeg."""
    return "predictor.query_features" in weights and "no_object" in weights


def is_prompts(weights: dict[str, Tensor]) -> bool:
    """Whether a state dict under our names (`to_ours`) is of prompt learning alone."""
    return "prompt.class_prompt" in weights and not is_freeseg(weights)


def infer_architecture(weights: dict[str, Tensor], where: str) -> tuple[str, dict]:
    """(named architecture, options) whose sizes a file has; `weights` under our names.

    Raises:
        CheckpointError: no FreeSeg, or another backbone.
    """
    if not is_freeseg(weights):
        raise CheckpointError(f"{where}: no FreeSeg checkpoint; a file with mask queries and text prompts is needed")
    if "image_encoder.conv1.weight" not in weights:
        raise CheckpointError(f"{where}: a FreeSeg with another backbone than ResNet-50 or ResNet-101c; give --arch and image_encoder")
    name = "freeseg_r101c" if "image_encoder.conv3.weight" in weights else "freeseg_r50"

    def rows(key: str) -> int:
        return len(weights[key])

    def layers(prefix: str) -> int:
        return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})

    side = int((rows("clip.visual.positional_embedding") - 1) ** 0.5)
    patch = weights["clip.visual.conv1.weight"].shape[-1]
    return name, dict(
        hidden_dim=rows("predictor.norm.weight"),
        mask_dim=rows("pixel_decoder.mask_features.weight"),
        num_queries=rows("predictor.query_features"),
        encoder_layers=layers("pixel_decoder.layers."),
        encoder_hidden=rows("pixel_decoder.layers.0.expand.weight"),
        decoder_layers=layers("predictor.layers."),
        decoder_hidden=rows("predictor.layers.0.expand.weight"),
        attention_heads=rows("pixel_decoder.layers.0.attention.attention_weights.bias") // (LEVELS * POINTS),
        interaction_dim=rows("interaction.q_proj.weight"),
        class_hidden=rows("predictor.class_embed.layers.0.weight"),
        class_prompt_length=rows("prompt.class_prompt"),
        task_prompt_length=rows("prompt.task_prompt") if "prompt.task_prompt" in weights else 0,
        patch_size=patch,
        image_size=side * patch,
        image_width=rows("clip.visual.class_embedding"),
        image_layers=layers("clip.visual.transformer.resblocks."),
        image_heads=max(1, rows("clip.visual.class_embedding") // HEAD_WIDTH),
        text_width=rows("clip.ln_final.weight"),
        text_layers=layers("clip.transformer.resblocks."),
        text_heads=max(1, rows("clip.ln_final.weight") // HEAD_WIDTH),
        projection_dim=weights["clip.text_projection"].shape[-1],
        context_length=rows("clip.positional_embedding"),
        vocab_size=rows("clip.token_embedding.weight"),
    )  # fmt: skip


def export_official(model: nn.Module, path, classes: int = 0, no_object: float = 0.1) -> None:
    """Writes the weights in the official layout, {"model": ...}; `classes`: how many it was trained with (0: as many as it has)."""
    _save_official(to_official(model.state_dict(), classes or len(model.names), no_object), path)


def export_official_prompts(model: nn.Module, path) -> None:
    """Writes CLIP and prompts of a `FreeSegPrompt` in the official layout of prompt learning, {"model": ...}."""
    _save_official(to_official(model.state_dict()), path)


def _save_official(weights: dict[str, Tensor], path) -> None:
    weights = {key: value.detach().cpu().clone() for key, value in weights.items()}
    with atomic_write(path) as file:
        torch.save({"model": weights}, file)


# ---- parts to start a training from ----


def load_prompts(model: nn.Module, path) -> None:
    """Takes the learned prompts of a FreeSeg checkpoint, of either stage of training, for those of `model`.

    Raises:
        CheckpointError: unreadable, without prompts, or prompts of another length or width.
    """
    weights = {key: value for key, value in to_ours(load_state(path)["model"]).items() if key.startswith("prompt.")}
    if not weights:
        raise CheckpointError(f"{path}: holds no learned prompts; give a checkpoint of prompt learning")
    own = {key: value for key, value in model.state_dict().items() if key.startswith("prompt.")}
    _load_part(model, weights, own, f"{path}: prompts that do not fit")


def load_clip(model: nn.Module, path) -> None:
    """Takes the towers of a CLIP file, OpenAI's or open_clip's, for those of `model`, and its vectors for the prompts' fixed tokens.

    Raises:
        CheckpointError: unreadable, no CLIP, or one of other sizes.
    """
    weights = load_state(path)["model"]  # under our names: `clip.` in front
    weights = {key: value.float() for key, value in weights.items() if key.removeprefix("clip.") not in (*COUNTERS, "attn_mask")}
    own = {key: value for key, value in model.state_dict().items() if key.startswith("clip.")}
    _load_part(model, weights, own, f"{path}: no CLIP of the sizes that were asked for")
    model.prompt.take_signals(model.clip.token_embedding.weight)


def load_image_encoder(model: nn.Module, path) -> None:
    """Takes the weights of an ImageNet backbone for the image encoder of `model`.

    Args:
        path: a `.pkl` of detectron2's model zoo (R-50.pkl, R-103.pkl), of which only arrays are read; or a checkpoint in torchvision's
            or detectron2's names, or for a timm backbone in timm's.

    Raises:
        CheckpointError: unreadable, or another backbone.
    """
    path = Path(path)
    weights = load_arrays(path) if path.suffix == ".pkl" else load_state(path)["model"]
    own = model.image_encoder.state_dict()
    if any(key.startswith("model.") for key in own):  # timm's, whose classifier is another part
        weights = {f"model.{key}": value for key, value in weights.items() if f"model.{key}" in own}
    else:
        weights = backbone_to_ours(weights)
    _load_part(model, weights, own, f"{path}: not the backbone {model.config.image_encoder}")


def backbone_to_ours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a ResNet in torchvision's or detectron2's names under ours; classifiers and counters of batches are left out."""
    prefix = next((p for p in ("module.", "backbone.bottom_up.", "backbone.") if any(key.startswith(p) for key in weights)), "")
    found = {}
    for key, value in weights.items():
        key = key.removeprefix(prefix)
        if key.startswith(UNUSED_OF_BACKBONES) or key.endswith("num_batches_tracked"):
            continue
        if key.startswith(("stem.", "res2.", "res3.", "res4.", "res5.")):
            key = next(iter(to_ours({f"backbone.{key}": value}))).removeprefix("image_encoder.")
        found[key] = value
    return found


def _load_part(model: nn.Module, weights: dict[str, Tensor], own: dict[str, Tensor], foreign: str) -> None:
    """Copies `weights` into the entries `own` of the model's state, if they are the same in number and shape."""
    check_entries(weights, own, foreign, "Check the file, and the sizes that the model was asked for")
    with torch.no_grad():
        for key, value in weights.items():
            own[key].copy_(value)
    model.forget_text_vectors()
