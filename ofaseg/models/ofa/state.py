"""The official key layout: what has to happen to a state dict of OFA or IFSeg before this model can load it strictly.

Follows the published loading rules, with two repairs: the class rows of another class list are replaced instead of
deleted, and the vocabulary is never filled from a live parameter.
"""

import re
from typing import Callable

import torch
from torch import Tensor

from ofaseg.models.state import CheckpointError, StateUpgrade, check_entries

DERIVED_KEY = re.compile(
    r"(^|\.)(version|token_rp_bucket|image_rp_bucket|seg_rp_bucket|image_position_idx|bin_id_offset|seg_id_offset|region_prefix)$"
    r"|^encoder\.embed_tokens_bag\.weight$|^decoder\.output_projection\.weight$"
)
"""Entries of the official layout that this model computes, or that only repeat another entry."""

SEGMENTATION_KEY = re.compile(r"^decoder\.(embed_seg_positions\.weight|seg_pos_ln\.(weight|bias)|seg_rel_pos_table_list\.\d+\.weight)$")
"""Entries that OFA lacks and that start anew when an OFA checkpoint is loaded."""

CLASS_KEYS = ("encoder.seg_embed_tokens.weight", "decoder.seg_embed_tokens.weight", "decoder.seg_projection.weight")
TOKEN_KEYS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
FOREIGN = "this is no OFA or IFSeg checkpoint of the architecture that was asked for"


def upgrade_official_state(state: dict[str, Tensor], own: dict[str, Tensor], class_table: Callable[[Tensor], Tensor]) -> StateUpgrade:
    """Changes `state` in place so that a model whose `state_dict()` is `own` loads it strictly.

    Args:
        state: an official (or own) state dict.
        own: the model's entries, as start values and for shapes.
        class_table: word embedding (V, D) -> (C, D) class embeddings, for files without class rows.

    Raises:
        CheckpointError: the file lacks the vocabulary, or has another width, vocabulary or class count.
    """
    report = StateUpgrade()
    for key in [key for key in state if DERIVED_KEY.search(key) or (key.endswith("num_batches_tracked") and key not in own)]:
        del state[key]
        report.dropped.append(key)
    _upgrade_tokens(state, own, report)
    _upgrade_classes(state, own, class_table, report)
    _upgrade_positions(state, own, report)
    for key, value in own.items():
        if key not in state and (SEGMENTATION_KEY.match(key) or key.endswith("num_batches_tracked")):
            state[key] = value.clone()
            report.filled.append(key)
    check_entries(state, own, FOREIGN, "Check --arch and the image size options")
    return report


def _upgrade_tokens(state: dict, own: dict, report: StateUpgrade) -> None:
    """One word embedding under both keys, with the extra row that the class symbols bring."""
    tokens = next((state[key] for key in TOKEN_KEYS if key in state), None)
    if tokens is None:
        raise CheckpointError(f"{FOREIGN}: it has no entry {TOKEN_KEYS[0]!r}")
    expected = own[TOKEN_KEYS[0]]
    if tokens.ndim != 2 or tokens.shape[1] != expected.shape[1]:
        raise CheckpointError(
            f"{FOREIGN}: its word embedding is {tuple(tokens.shape)}, the model's {tuple(expected.shape)}; "
            "choose the architecture it was made with"
        )
    if len(tokens) == len(expected) - 1:
        tokens = torch.cat([tokens, expected[-1:].to(tokens)])
        report.resized.extend(TOKEN_KEYS)
    elif len(tokens) != len(expected):
        raise CheckpointError(
            f"the checkpoint has a vocabulary of {len(tokens)} words, the model {len(expected)} "
            f"(or {len(expected) - 1} without class symbols); "
            "a checkpoint of another language or dictionary (such as the Chinese OFA) does not fit, use one made with the same dictionary"
        )
    for key in TOKEN_KEYS:
        state[key] = tokens


def _upgrade_classes(state: dict, own: dict, class_table: Callable, report: StateUpgrade) -> None:
    """Class rows: taken over when the count fits, made from the names when the file has none."""
    rows = next((state[key] for key in CLASS_KEYS if key in state), None)
    expected = len(own[CLASS_KEYS[0]])
    if rows is not None and len(rows) != expected:
        raise CheckpointError(
            f"the checkpoint was trained on {len(rows)} classes, this run has {expected}; give the same class list, "
            "or, to train on from its weights, use --pretrained and another --save-dir"
        )
    if rows is not None:
        for key in CLASS_KEYS:
            state.setdefault(key, rows)
        return
    table = class_table(state[TOKEN_KEYS[0]])
    for key in CLASS_KEYS:
        state[key] = table
        report.filled.append(key)


def _upgrade_positions(state: dict, own: dict, report: StateUpgrade) -> None:
    """Image position tables shorter than ours are completed with our own rows."""
    for key in ("encoder.embed_image_positions.weight", "decoder.embed_image_positions.weight"):
        value, target = state.get(key), own[key]
        if value is not None and value.ndim == 2 and value.shape[1] == target.shape[1] and len(value) < len(target):
            state[key] = torch.cat([value, target[len(value) :].to(value)])
            report.resized.append(key)
