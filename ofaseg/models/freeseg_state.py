"""The official key layouts of FreeSeg and of plain Mask2Former to ours, strictly, and back."""

import re
from typing import Optional

import torch
from torch import Tensor

from ofaseg.models.clip_dense import PIXEL_MEAN, PIXEL_STD
from ofaseg.models.state import CheckpointError, StateUpgrade, check_entries

FOREIGN = "this is no FreeSeg checkpoint of the architecture that was asked for"
ADVICE = "Check --arch and the sizes that differ from it"
REGION_ADAPTER = "_region_clip_adapter."
"""A second adapter that some configurations save; published code replaces it by the first when it evaluates."""
CONSTANTS = ("criterion.empty_weight", "clip_adapter.pixel_mean", "clip_adapter.pixel_std")
"""Entries without weights: class weights of the loss, and CLIP's colours."""
HEAD = "sem_seg_head."
LINEAR_CLASSES = f"{HEAD}predictor.class_embed.weight"
"""Mask2Former's classes, which only it has."""
FILLED = ("predictor.layers.9.", "predictor.class_embed.", "interaction.", "no_object", "prompt.", "clip.")
"""What Mask2Former has no entries for: it keeps our start values."""


def _stages() -> list[tuple[str, str]]:
    pairs = []
    for stage in range(1, 5):
        official, ours = f"backbone.res{stage + 1}.{{n}}.", f"image_encoder.layer{stage}.{{n}}."
        pairs += [
            (f"{official}shortcut.norm.", f"{ours}downsample.1."),
            (f"{official}shortcut.", f"{ours}downsample.0."),
            (f"{official}conv{{n}}.norm.", f"{ours}bn{{n}}."),
            (f"{official}conv{{n}}.", f"{ours}conv{{n}}."),
        ]
    return pairs


_ENCODER = f"{HEAD}pixel_decoder.transformer.encoder.layers.{{n}}."
_SELF, _CROSS = (f"{HEAD}predictor.transformer_{kind}_attention_layers.{{n}}." for kind in ("self", "cross"))
_FFN, _LAYER = f"{HEAD}predictor.transformer_ffn_layers.{{n}}.", "predictor.layers.{n}."

RENAMED = (
    ("backbone.stem.conv{n}.norm.", "image_encoder.bn{n}."),
    ("backbone.stem.conv{n}.", "image_encoder.conv{n}."),
    *_stages(),
    (f"{HEAD}pixel_decoder.input_proj.", "pixel_decoder.inputs."),
    (f"{HEAD}pixel_decoder.transformer.level_embed", "pixel_decoder.level_embedding"),
    (f"{_ENCODER}self_attn.", "pixel_decoder.layers.{n}.attention."),
    (f"{_ENCODER}norm1.", "pixel_decoder.layers.{n}.attention_norm."),
    (f"{_ENCODER}norm2.", "pixel_decoder.layers.{n}.norm."),
    (f"{_ENCODER}linear1.", "pixel_decoder.layers.{n}.expand."),
    (f"{_ENCODER}linear2.", "pixel_decoder.layers.{n}.contract."),
    (f"{HEAD}pixel_decoder.adapter_1.norm.", "pixel_decoder.lateral.norm."),
    (f"{HEAD}pixel_decoder.adapter_1.", "pixel_decoder.lateral.conv."),
    (f"{HEAD}pixel_decoder.layer_1.norm.", "pixel_decoder.fuse.norm."),
    (f"{HEAD}pixel_decoder.layer_1.", "pixel_decoder.fuse.conv."),
    (f"{HEAD}pixel_decoder.mask_features.", "pixel_decoder.mask_features."),
    (f"{_SELF}norm.", f"{_LAYER}self_attention.norm."),
    (f"{_SELF}self_attn.", f"{_LAYER}self_attention."),
    (f"{_CROSS}norm.", f"{_LAYER}cross_attention.norm."),
    (f"{_CROSS}multihead_attn.", f"{_LAYER}cross_attention."),
    (f"{_FFN}linear1.", f"{_LAYER}expand."),
    (f"{_FFN}linear2.", f"{_LAYER}contract."),
    (f"{_FFN}norm.", f"{_LAYER}norm."),
    (f"{HEAD}predictor.decoder_norm.", "predictor.norm."),
    (f"{HEAD}predictor.query_feat.weight", "predictor.query_features"),
    (f"{HEAD}predictor.query_embed.weight", "predictor.query_positions"),
    (f"{HEAD}predictor.level_embed.weight", "predictor.level_embedding"),
    (f"{HEAD}predictor.mask_embed.", "predictor.mask_embed."),
    (f"{HEAD}predictor.class_embed.", "predictor.class_embed."),
    (f"{HEAD}interaction.gamma", "interaction.gamma"),
    (f"{HEAD}interaction.layer_norm_q_1.", "interaction.pixel_norm."),
    (f"{HEAD}interaction.layer_norm_k_1.", "interaction.text_norm."),
    (f"{HEAD}interaction.attn.", "interaction."),
    ("clip_adapter.non_object_embedding", "no_object"),
    ("clip_adapter.prompt_learner.prefix_prompt", "prompt.class_prompt"),
    ("clip_adapter.prompt_learner.", "prompt."),
    ("clip_adapter.clip_model.", "clip."),
)
"""(official, ours) beginnings of keys, the first that fits; `{n}` stands for the same numbers on both sides, in order."""


def _rules(pairs) -> list[tuple[re.Pattern, str]]:
    rules = []
    for old, new in pairs:
        pattern = re.escape(old).replace(r"\{n\}", r"(\d+)")
        for number in range(1, new.count("{n}") + 1):
            new = new.replace("{n}", rf"\g<{number}>", 1)
        rules.append((re.compile(pattern), new))
    return rules


_TO_OURS = _rules(RENAMED)
_TO_OFFICIAL = _rules((ours, official) for official, ours in RENAMED)


def _renamed(key: str, rules) -> str:
    for pattern, new in rules:
        match = pattern.match(key)
        if match:
            return match.expand(new) + key[match.end() :]
    return key


def is_official(state: dict) -> bool:
    """Whether a state dict has the official layout of FreeSeg, of its prompt learning, or of Mask2Former."""
    return any(key.removeprefix("module.").startswith(("sem_seg_head.", "clip_adapter.")) for key in state)


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official keys, with or without `module.` in front, old ones of Mask2Former too, under our names; our own keys stay."""
    return {_renamed(_current(key.removeprefix("module.")), _TO_OURS): value for key, value in state.items()}


def _current(key: str) -> str:
    """Keys of the first Mask2Former files under the names of the later ones."""
    key = key.replace(".static_query.", ".query_feat.")
    if key.startswith(HEAD) and not key.startswith(tuple(f"{HEAD}{part}." for part in ("pixel_decoder", "predictor", "interaction"))):
        return f"{HEAD}pixel_decoder.{key[len(HEAD) :]}"
    return key


def to_official(state: dict[str, Tensor], classes: Optional[int] = None, no_object: float = 0.1) -> dict[str, Tensor]:
    """Our keys under the official names; with the number of trained classes K the entries without weights as well."""
    entries = {_renamed(key, _TO_OFFICIAL): value for key, value in state.items()}
    if classes is not None:
        colours = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        weights = torch.ones(classes + 1)
        weights[-1] = no_object
        entries |= dict(zip(CONSTANTS, (weights, *colours)))
    return entries


def upgrade_official_state(state: dict[str, Tensor], own: dict[str, Tensor]) -> StateUpgrade:
    """Changes `state` in place so that a model whose `state_dict()` is `own` loads it strictly.

    Entries without weights and the second adapter of regions are dropped. What plain Mask2Former has no entries for, texts and all that
    reads them, is filled with the model's own values.

    Raises:
        CheckpointError: an entry is missing, unknown or of another shape.
    """
    report = StateUpgrade()
    from_mask2former = any(key.removeprefix("module.") == LINEAR_CLASSES for key in state)
    entries = to_ours(state)
    unused = (REGION_ADAPTER, "criterion.") if from_mask2former else (REGION_ADAPTER, *CONSTANTS)
    unused += ("predictor.class_embed.weight", "predictor.class_embed.bias") if from_mask2former else ()
    for key in [key for key in entries if key.startswith(unused)]:
        del entries[key]
        report.dropped.append(key)
    if from_mask2former:
        for key, value in own.items():
            if key not in entries and key.startswith(FILLED):
                entries[key] = value
                report.filled.append(key)
    elif not any(key.startswith("predictor.") for key in entries) and any(key.startswith("prompt.") for key in entries):
        raise CheckpointError(f"{FOREIGN}; it holds learned prompts only. Give it as the prompts of a model to train")
    check_entries(entries, own, FOREIGN, ADVICE)
    state.clear()
    state.update(entries)
    return report


def upgrade_official_prompts(state: dict[str, Tensor], own: dict[str, Tensor]) -> StateUpgrade:
    """As `upgrade_official_state`, for a model of CLIP and prompts alone.

    Raises:
        CheckpointError: an entry is missing, unknown or of another shape; or the file is of a whole FreeSeg.
    """
    report = StateUpgrade()
    entries = to_ours(state)
    if any(key.startswith("predictor.") for key in entries):
        raise CheckpointError(f"{FOREIGN}; it holds a whole FreeSeg. Prompts are learned before it: give a checkpoint of prompt learning")
    for key in [key for key in entries if key in CONSTANTS]:
        del entries[key]
        report.dropped.append(key)
    check_entries(entries, own, FOREIGN, ADVICE)
    state.clear()
    state.update(entries)
    return report
