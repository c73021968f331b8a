"""Exported checkpoints: class rows are kept or follow the words, and the shipped model is the one its card describes."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from ofaseg.checkpoints import load_model
from tools.export_model import export, main

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


def test_files_that_a_model_needs_go_with_it(tmp_path, capsys):
    """Word pieces, templates and label set lie in three places; the export can be moved away from all of them."""
    from tests.models.one_layer import one_layer
    from tests.toy_simseg import write_simseg

    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "sentences.txt").write_text("a photo of the {}\n{}\n")
    (tmp_path / "lists" / "names.json").write_text('{"red": ["red car"], "blue": ["blue grass", "the blue"]}')
    with one_layer():
        checkpoint = write_simseg(tmp_path / "model")
        state = torch.load(checkpoint)
        lists = {"templates": str(tmp_path / "lists" / "sentences.txt"), "subclasses": str(tmp_path / "lists" / "names.json")}
        state["cfg"]["task"] |= lists | {"_name": "dense_segmentation", "class_names": "red, blue"}
        state["cfg"]["common"] = {"seed": 1}
        torch.save(state, checkpoint)
        export(checkpoint, str(tmp_path / "out" / "model.safetensors"), half=False, command="")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "model.safetensors", "model.json", "vocab.txt", "sentences.txt", "names.json"
        }  # fmt: skip
        expected = load_model(checkpoint)[0].subclass_embeddings()
        for folder in ("lists", "model"):
            (tmp_path / folder).rename(tmp_path / f"{folder}-gone")
        moved = (tmp_path / "out").rename(tmp_path / "elsewhere") / "model.safetensors"
        again, task = load_model(moved)
    assert task.templates == ("a photo of the {}", "{}") and len(expected) == 3
    torch.testing.assert_close(again.subclass_embeddings(), expected)


def test_towers_without_classes_are_exported_and_faults_are_a_line(tmp_path, capsys):
    from tests.models.one_layer import one_layer
    from tests.toy_simseg import write_simseg

    with one_layer():
        checkpoint = write_simseg(tmp_path / "model")
        state = torch.load(checkpoint)
        state["cfg"]["task"] |= {"_name": "image_text_pretraining", "class_names": ""}
        state["cfg"]["common"] = {"seed": 1}
        torch.save(state, checkpoint)
        assert main([str(checkpoint), str(tmp_path / "out" / "model.safetensors")]) == 0
        model, task = load_model(tmp_path / "out" / "model.safetensors", class_names="red, blue, the")
        assert task.vocabulary.names == ("red", "blue", "the") and not model.training
        (tmp_path / "model" / "vocab.txt").rename(tmp_path / "gone.txt")
        capsys.readouterr()
        assert main([str(checkpoint), str(tmp_path / "again" / "model.safetensors")]) == 1
    assert "are not there any more; copy the file beside the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("task, kept", [("seq2seq_segmentation", True), ("vision_language_pretraining", False)])
def test_trained_class_rows_are_kept_and_those_of_pretraining_made_anew(tmp_path, task, kept):
    """Pretraining changes the words after class rows were made from them; training changes the rows themselves."""
    model, _ = load_model(ASSETS / "segofa_nano.safetensors")
    about = json.loads((ASSETS / "segofa_nano.json").read_text())
    with torch.no_grad():
        model.class_embeddings().fill_(3.0)
    cfg = {
        "common": {"seed": 1},
        "model": about["model"] | {"train_class_embedding": True},
        "task": about["task"] | {"_name": task, "class_names": ", ".join(about["vocabulary"]["names"]), "data": str(tmp_path)},
    }
    torch.save({"model": model.state_dict(), "cfg": cfg}, tmp_path / "checkpoint.pt")
    export(str(tmp_path / "checkpoint.pt"), str(tmp_path / "model.safetensors"), half=False, command="")
    again, _ = load_model(tmp_path / "model.safetensors")
    assert bool((again.class_embeddings() == 3.0).all()) == kept
    if not kept:
        assert torch.allclose(again.class_embeddings(), again.class_words(), atol=1e-6)
