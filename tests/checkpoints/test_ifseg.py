"""Official key layouts load strictly, and misfits are told clearly."""

import pytest
import torch
from torch import nn

from ofaseg.checkpoints import CheckpointError, load_official, load_pretrained
from ofaseg.vocabulary import ClassVocabulary
from tests.checkpoints.layouts import CLASS_TOKENS, ifseg_state, nano, ofa_state


def save(path, state, **entries):
    torch.save({"model": state, **entries}, path)
    return path


def test_upstream_ofa(tmp_path):
    model = nano()
    state = ofa_state(model)
    start_row = model.encoder.embed_tokens.weight[-1].clone()
    report = load_official(model, save(tmp_path / "ofa.pt", state))
    words = model.encoder.embed_tokens.weight
    assert torch.equal(words[:-1], state["encoder.embed_tokens.weight"]) and torch.equal(words[-1], start_row)
    assert model.decoder.embed_tokens.weight is words
    assert torch.equal(model.class_embeddings()[0], words[[4, 5]].mean(0))
    assert model.decoder.seg_projection.weight is model.encoder.seg_embed_tokens.weight
    assert torch.equal(model.encoder.layers[1].fc1.weight, state["encoder.layers.1.fc1.weight"])
    assert "decoder.output_projection.weight" in report.unexpected and "decoder.embed_seg_positions.weight" in report.missing
    assert report.resized == ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    assert "matched" in str(report) and "encoder.layers.0.fc1.weight" in report.matched


def test_ifseg(tmp_path):
    model = nano()
    state = ifseg_state(model)
    report = load_official(model, save(tmp_path / "ifseg.pt", state))
    assert not report.missing and not report.resized
    assert torch.equal(model.class_embeddings(), state["encoder.seg_embed_tokens.weight"])
    load_pretrained(model, tmp_path / "ifseg.pt")
    assert torch.equal(model.class_embeddings(), model.class_words())


def test_fairseq_strict_loading_uses_the_same_rules():
    model = nano()
    state = ofa_state(model)
    words = state["encoder.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    assert torch.equal(model.encoder.embed_tokens.weight[:-1], words)
    torch.testing.assert_close(model.class_embeddings(), model.class_words())
    with torch.no_grad():
        model.class_embeddings().add_(1)
    trained = model.class_embeddings().clone()
    model.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(model.class_embeddings(), trained), "a run that goes on keeps its class embeddings"


def test_batch_counters_of_a_trained_image_encoder(tmp_path):
    frozen, trained = nano(), nano(train_image_encoder=True)
    path = save(tmp_path / "frozen.pt", frozen.state_dict())
    report = load_official(trained, path)
    assert isinstance(trained.encoder.embed_images.bn1, nn.BatchNorm2d)
    assert all(key.endswith("num_batches_tracked") for key in report.missing)
    load_official(frozen, save(tmp_path / "trained.pt", trained.state_dict()))


def test_another_class_count(tmp_path):
    path = save(tmp_path / "three.pt", ifseg_state(nano()))
    five = [[k] for k in range(4, 9)]
    with pytest.raises(CheckpointError, match=r"three\.pt.*trained on 3 classes, this run has 5.*--pretrained"):
        load_official(nano(five), path)
    model = nano(five)
    load_pretrained(model, path)
    assert torch.equal(model.class_embeddings(), model.encoder.embed_tokens.weight[4:9])


NAMES = ("red ball", "grass", "big blue sky")


def recorded(names, task="seq2seq_segmentation") -> dict:
    """What a checkpoint of ours says of its task."""
    return {"cfg": {"task": {"_name": task}}, "task_state": {"vocabulary": ClassVocabulary(tuple(names)).to_json()}}


@pytest.mark.parametrize(
    "about, reason",
    [
        (recorded(NAMES), ""),
        ({"cfg": {"task": {"category_list": "red ball, grass,big blue sky"}}}, ""),
        (recorded(("grass", "red ball", "big blue sky")), "class 0 is 'grass' there, 'red ball' here"),
        (recorded(NAMES[:2]), "2 classes there, 3 here"),
        (recorded(NAMES, "vision_language_pretraining"), "pretraining changes the words"),
        ({}, "the file does not say of which classes"),
    ],
)
def test_class_embeddings_go_on_with_the_same_classes_only(tmp_path, caplog, about, reason):
    model = nano()
    state = ifseg_state(model)
    path = save(tmp_path / "trained.pt", state, **about)
    with caplog.at_level("INFO"):
        load_pretrained(model, path, NAMES)
    assert (f"since {reason}" if reason else "its class embeddings are kept") in caplog.text
    trained, words = state["encoder.seg_embed_tokens.weight"], model.class_words()
    assert not torch.allclose(trained, words)
    assert torch.equal(model.class_embeddings(), words if reason else trained)


@pytest.mark.parametrize("rows", [40, 58, 61])
def test_another_vocabulary(tmp_path, rows):
    state = ofa_state(nano())
    for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        state[key] = torch.zeros(rows, 128)
    with pytest.raises(CheckpointError, match=f"vocabulary of {rows} words, the model 60.*Chinese"):
        load_official(nano(), save(tmp_path / "chinese.pt", state))


def test_another_size(tmp_path):
    state = ifseg_state(nano())
    del state["encoder.layers.0.fc1.weight"]
    state["encoder.layers.1.fc1.bias"] = torch.zeros(3)
    state["something.else"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="fc1.weight: missing.*something.else: unknown.*shape.*--arch"):
        load_official(nano(), save(tmp_path / "other.pt", state))
    state = {key: torch.zeros(60, 64) for key in ("encoder.embed_tokens.weight",)}
    with pytest.raises(CheckpointError, match="word embedding is .60, 64."):
        load_official(nano(), save(tmp_path / "narrow.pt", state))


def test_foreign_file(tmp_path):
    with pytest.raises(CheckpointError, match="no OFA or IFSeg checkpoint"):
        load_official(nano(), save(tmp_path / "foreign.pt", {"backbone.weight": torch.zeros(3)}))


def test_shorter_image_position_table():
    model = nano()
    state = ifseg_state(model)
    key = "encoder.embed_image_positions.weight"
    state[key] = state[key][:100]
    report = model.upgrade_state(state)
    assert key in report.resized and torch.equal(state[key][100:], model.encoder.embed_image_positions.weight[100:])


def test_class_tokens_of_the_layouts_are_three():
    assert len(CLASS_TOKENS) == nano().num_classes == 3
