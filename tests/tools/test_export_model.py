"""Exported checkpoints: class rows follow the words, and the shipped model is the one its card describes."""

import hashlib
import json
import re
from pathlib import Path

import torch

from ofaseg.checkpoints import load_model

ASSETS = Path(__file__).resolve().parent.parent.parent / "ofaseg" / "assets" / "shapes"


def test_the_shipped_model_matches_its_card_and_json():
    data = (ASSETS / "segofa_nano.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert json.loads((ASSETS / "segofa_nano.json").read_text())["weights_sha256"] == digest
    assert digest in re.findall(r"[0-9a-f]{64}", (ASSETS / "MODEL_CARD.md").read_text())
    assert len(data) <= 10_000_000


def test_the_shipped_model_loads_with_class_rows_made_of_its_words():
    model, task = load_model(ASSETS / "segofa_nano.safetensors")
    assert len(task.vocabulary) == model.num_classes == 17
    assert torch.allclose(model.class_embeddings(), model.class_words(), atol=1e-2)
