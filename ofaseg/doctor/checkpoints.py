"""Checks of checkpoint files: readable without running code, finite weights, class rows that fit the class names."""

import torch

from ofaseg.checkpoints import CheckpointError, load_state
from ofaseg.checkpoints.ifseg import recorded_vocabulary
from ofaseg.checkpoints.restore import published_architecture
from ofaseg.data.foreign import foreign_kind
from ofaseg.doctor.findings import Findings, finding, from_error
from ofaseg.doctor.vocabulary import check_names
from ofaseg.models.ofa.state import CLASS_KEYS
from ofaseg.vocabulary import VocabularyError

_TORCH_ZIP = b"PK\x03\x04"


def check_checkpoint(path: str, findings: Findings) -> None:
    """Checks one .pt or .safetensors file."""
    with open(path, "rb") as file:
        start = file.read(len(_TORCH_ZIP))
    kind, cure = foreign_kind(path) if start != _TORCH_ZIP else ("", "")
    if kind or not start:
        findings.add(finding("bad_checkpoint", path, kind or "the file is empty", cure or "copy it again"))
        return
    try:
        state = load_state(path)
        vocabulary = recorded_vocabulary(state, path)
        if not state["cfg"]:
            published_architecture(state["model"], path)
    except (CheckpointError, VocabularyError) as error:
        findings.add(from_error("bad_checkpoint", error, path))
        return
    for key, tensor in {**state["ema"], **state["model"]}.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            number = int((~torch.isfinite(tensor)).sum())
            message = f"{number} of {tensor.numel()} values are not finite"
            findings.add(finding("nan_weights", path, message, "train again from an older checkpoint, with a lower rate", column=key))
    if vocabulary is None:
        return
    findings.add(*check_names(vocabulary.names, path))
    for key in CLASS_KEYS:
        rows = state["model"].get(key)
        if rows is not None and len(rows) != len(vocabulary):
            message = f"{len(rows)} class rows, but {len(vocabulary)} class names are recorded"
            findings.add(finding("class_rows", path, message, "give --class-names when it is used, or export the model again", column=key))
