"""Official SimSeg files of nano size: loading by themselves, mistakes, the way back, and class vectors kept between runs."""

import logging
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ofaseg.checkpoints import CheckpointError, class_vectors, load_model, load_official, simseg
from ofaseg.models.simseg import SimSeg, architecture_config
from ofaseg.models.simseg_state import to_official
from ofaseg.tokenizers import TokenizerError
from tests.golden.golden_weights import golden_tensor
from tests.integration.pair_jobs import SPECIAL_TOKENS
from tests.models.one_layer import one_layer

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = (*SPECIAL_TOKENS, *"a the photo of cat dog sky background .".split())
NAMES = "cat, dog, sky"


@pytest.fixture(scope="module", autouse=True)
def small():
    with one_layer():
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """vocab.txt, and an empty cache; files of the nano width are taken for published ones."""
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    monkeypatch.setitem(simseg.WIDTHS, 128, "simseg_nano")
    monkeypatch.setenv(class_vectors.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def weights():
    """Official entries of a model for photos of 64 pixels, which has to be read at 96."""
    model = SimSeg(architecture_config("simseg_nano", image_size=64), len(WORDS))
    state = to_official(model.state_dict())
    return {key: torch.from_numpy(golden_tensor(key, tuple(value.shape)).copy()) for key, value in state.items()}


UNUSED = {
    "text_encoder.model.model.embeddings.position_ids": torch.arange(64)[None],
    "text_encoder.model.model.pooler.dense.weight": torch.zeros(128, 128),
    "text_encoder.model.model.pooler.dense.bias": torch.zeros(128),
}


def write(folder, entries, wrapper="state_dict", prefix=""):
    path = folder / "simseg.pth"
    entries = {prefix + key: value for key, value in entries.items()}
    torch.save({wrapper: entries, "meta": {"epoch": 3}} if wrapper else entries, path)
    return path


def load(path, names=NAMES, **overrides):
    return load_model(path, class_names=names, overrides={"templates": "photo"} | overrides)


def cosines(model, task):
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return model.predict(**task.encode_image_for_predict(photo)["net_input"]).class_logits


@pytest.mark.parametrize("wrapper, prefix", [("state_dict", ""), ("state_dict", "module."), ("model_state_dict", ""), (None, "module.")])
def test_an_official_file_needs_nothing_but_names_and_vocab_txt(folder, weights, wrapper, prefix):
    model, task = load(write(folder, weights | UNUSED, wrapper, prefix), patch_image_size=96)
    assert not model.training and task.vocabulary.names == ("cat", "dog", "sky") and task.zero_shot is None
    assert model.image_encoder.vit.pos_embed.shape == (1, 145, 128)
    for key, value in to_official(model.state_dict()).items():
        assert key.endswith("pos_embed") or torch.equal(value, weights[key]), key
    assert cosines(model, task).shape == (1, 3, 12, 12)


def test_the_background_switches_candidates_on(folder, weights):
    _, task = load(write(folder, weights), names=f"Background, {NAMES}")
    post = task.post_process()
    assert post.candidates is not None and post.refine == "dense_crf"


def test_safetensors_with_official_names(folder, weights):
    expected = cosines(*load(write(folder, weights)))
    save_file(weights, folder / "converted.safetensors")
    torch.testing.assert_close(cosines(*load(folder / "converted.safetensors")), expected)


def test_the_official_layout_and_back(folder, weights):
    model, task = load(write(folder, weights))
    simseg.export_official(model, folder / "again.pth")
    content = torch.load(folder / "again.pth", weights_only=True)
    assert list(content) == ["state_dict"] and content["state_dict"].keys() == weights.keys()
    assert all(key.endswith("pos_embed") or torch.equal(value, weights[key]) for key, value in content["state_dict"].items())
    again, task = load(folder / "again.pth")
    torch.testing.assert_close(cosines(again, task), cosines(model, task), rtol=0, atol=0)
    fresh = SimSeg(architecture_config("simseg_nano"), len(WORDS))
    report = load_official(fresh, folder / "again.pth")
    assert not report.missing and not report.resized
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in fresh.state_dict().items())


def without(key):
    return lambda entries: {other: value for other, value in entries.items() if other != key}


@pytest.mark.parametrize(
    "change, message",
    [
        (without("text_projection.linear.weight"), "simseg.pth: .*text_projection.weight: missing"),
        (lambda entries: entries | {"decoder.weight": torch.zeros(2)}, "simseg.pth: .*decoder.weight: unknown"),
        (
            lambda entries: entries | {"text_encoder.model.model.embeddings.word_embeddings.weight": torch.zeros(30522, 128)},
            r"simseg.pth: .*shape \(30522, 128\), expected \(14, 128\).*give the checkpoint's own vocab.txt",
        ),
        (lambda entries: entries | {"image_encoder.model.model.pos_embed": torch.zeros(1, 65, 192)}, "image tower 192 wide; the published"),
    ],
)
def test_files_that_do_not_fit_are_one_message(folder, weights, change, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(write(folder, change(weights)))
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_vocabulary_and_missing_names_are_one_message(folder, weights):
    path = write(folder, weights)
    with pytest.raises(CheckpointError, match="records no class names; give --class-names"):
        load_model(path)
    (folder / "vocab.txt").unlink()
    with pytest.raises(TokenizerError, match="no WordPiece vocabulary .*vocab.txt.*or put it beside the checkpoint"):
        load(path)


# -- class vectors between runs ----------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch):
    """Counts how often class vectors are computed."""
    calls, compute = [], SimSeg.name_embeddings

    def note(model):
        if "classes" not in model._text_vectors:
            calls.append(model)
        return compute(model)

    monkeypatch.setattr(SimSeg, "name_embeddings", note)
    return calls


def kept(folder):
    return sorted((folder / "cache" / "class_vectors").glob("*"))


def test_a_second_load_takes_the_file(folder, weights, made):
    path = write(folder, weights)
    first = load(path)[0].class_embeddings()
    assert len(made) == 1 and len(kept(folder)) == 1
    assert torch.equal(load_file(kept(folder)[0])["vectors"], first)
    second, task = load(path)
    assert torch.equal(second.class_embeddings(), first) and len(made) == 1
    assert cosines(second, task).isfinite().all() and len(made) == 1


def test_other_weights_names_orders_and_templates_do_not(folder, weights, made):
    path = write(folder, weights)
    load(path)
    for count, again in enumerate(
        (
            lambda: load(path, names="cat, dog"),
            lambda: load(path, names="dog, cat, sky"),
            lambda: load(path, templates="name"),
            lambda: load(write(folder, weights | {"text_projection.linear.weight": weights["text_projection.linear.weight"] + 1e-3})),
        ),
        2,
    ):
        again()
        assert len(made) == count == len(kept(folder))
    write(folder, weights | {"image_projection.linear.weight": weights["image_projection.linear.weight"] + 1})
    load(path)
    assert len(made) == 5, "the image tower has no part in class vectors"


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "shape", "nan"])
def test_a_damaged_file_is_made_again(folder, weights, made, caplog, damage):
    path = write(folder, weights)
    expected = load(path)[0].class_embeddings()
    file = kept(folder)[0]
    if damage == "shape":
        save_file({"vectors": expected[:2].contiguous()}, file)
    elif damage == "nan":
        save_file({"vectors": expected * float("nan")}, file)
    else:
        file.write_bytes({"cut": file.read_bytes()[:-9], "empty": b"", "text": b"no vectors here"}[damage])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load(path)[0].class_embeddings(), expected)
    assert "class vectors cannot be read" in caplog.text and len(made) == 2
    assert torch.equal(load_file(file)["vectors"], expected)


def test_vectors_of_subclasses_are_kept_beside_those_of_classes(folder, weights, monkeypatch):
    (folder / "names.json").write_text('{"sky": ["sky background"], "cat": ["a cat", "photo cat"], "dog": ["the dog"]}')
    path, options = write(folder, weights), {"subclasses": str(folder / "names.json"), "zero_shot": "dense"}
    first, task = load(path, **options)
    assert len(kept(folder)) == 2 and first.subclass_embeddings().shape == (4, 128)
    monkeypatch.setattr(SimSeg, "embed_text", None)
    second, _ = load(path, **options)
    assert torch.equal(second.subclass_embeddings(), first.subclass_embeddings()), "from the file, without the text tower"
    assert torch.equal(cosines(second, task), cosines(first, task))


def test_a_folder_that_cannot_be_written_only_warns(folder, weights, made, caplog, monkeypatch):
    (folder / "file").write_text("in the way")
    monkeypatch.setenv(class_vectors.CACHE_VARIABLE, str(folder / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        model, task = load(write(folder, weights))
    assert "class vectors cannot be kept" in caplog.text and "set OFASEG_CACHE to a folder that can be written" in caplog.text
    assert cosines(model, task).isfinite().all() and len(made) == 1


def test_an_empty_variable_keeps_nothing(folder, weights, monkeypatch):
    monkeypatch.setenv(class_vectors.CACHE_VARIABLE, "")
    before = set(os.listdir(folder))
    load(write(folder, weights))
    assert set(os.listdir(folder)) - before == {"simseg.pth"}
