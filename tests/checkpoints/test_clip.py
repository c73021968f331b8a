"""CLIP files by `load_model`: layouts, sizes, activation, wrong files, kept class vectors, the way through an export."""

import json
import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save, save_file

from ofaseg.checkpoints import CheckpointError, export_safetensors, load_dual_encoder, load_model
from ofaseg.checkpoints.clip import TASK_OPTIONS, infer_architecture
from ofaseg.checkpoints.restore import published_architecture
from ofaseg.models.clip_dense import ClipDense
from ofaseg.models.clip_state import COUNTERS, to_ours
from ofaseg.tokenizers import TokenizerError
from tests.checkpoints.clip_files import nano_state, openai_state, text_apart

NAMES = "cat, traffic light, sky"
FEW = {"templates": "photo", "patch_image_size": 32}


@pytest.fixture(scope="module")
def state():
    return nano_state()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFASEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "class_vectors"


def predicted(model, task):
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return model.predict(**task.encode_image_for_predict(photo)["net_input"])


def test_layouts(state, tmp_path, caplog):
    """OpenAI's, open_clip's of both kinds, and safetensors give the same model."""
    torch.save({"epoch": 3, "name": "x", "state_dict": text_apart(state), "optimizer": {}}, tmp_path / "training.pt")
    torch.save(state, tmp_path / "plain.pt")
    save_file(state, tmp_path / "open_clip_model.safetensors")
    outputs = []
    for name in ("training.pt", "plain.pt", "open_clip_model.safetensors"):
        model, task = load_model(tmp_path / name, class_names=NAMES, overrides=FEW)
        assert isinstance(model, ClipDense) and not model.training and task.vocabulary.names == ("cat", "traffic light", "sky")
        for key, value in state.items():
            assert torch.equal(model.state_dict()["clip." + key], value), key
        outputs.append(predicted(model, task))
    assert outputs[0].class_logits.shape == (1, 3, 4, 6)
    assert all(torch.equal(a, b) for output in outputs[1:] for a, b in zip(outputs[0], output))
    torch.save(openai_state(state), tmp_path / "openai.pt")
    model, task = load_model(tmp_path / "openai.pt", class_names=NAMES, overrides=FEW)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert torch.allclose(predicted(model, task).class_logits, outputs[0].class_logits, atol=1e-2)


def test_how_it_is_evaluated(state, tmp_path):
    torch.save(openai_state(state), tmp_path / "openai.pt")
    _, task = load_model(tmp_path / "openai.pt", class_names=NAMES, overrides={"templates": "name"})
    assert {key: getattr(task.cfg, key) for key in TASK_OPTIONS} == TASK_OPTIONS and task.cfg.text_length == 77
    assert task.grid_stride == 8 and task.evaluation_size(300, 500) == (336, 560) and task.evaluation_size(501, 300) == (560, 336)
    batch = task.encode_image_for_predict(np.zeros((501, 300, 3), dtype=np.uint8))
    assert batch["net_input"]["image"].shape == (1, 3, 560, 336) and batch["native_sizes"] == [(501, 300)]
    assert task.class_prompts[1] == [[49406, 3399, 1395, 49407]]


def test_sizes_of_the_published_models():
    """The shapes alone name the architecture; nothing of that size is built."""

    def shapes(width, patch, side, text_width, dim):
        sizes = {
            "visual.conv1.weight": (width, 3, patch, patch), "visual.class_embedding": (width,), "visual.proj": (width, dim),
            "visual.positional_embedding": (1 + (side // patch) ** 2, width), "token_embedding.weight": (49408, text_width),
            "positional_embedding": (77, text_width), "ln_final.weight": (text_width,), "text_projection": (text_width, dim),
            "visual.transformer.resblocks.0.ln_1.weight": (width,), "visual.transformer.resblocks.11.ln_1.weight": (width,),
            "transformer.resblocks.5.ln_1.weight": (text_width,),
        }  # fmt: skip
        return to_ours({key: torch.empty(shape, device="meta") for key, shape in sizes.items()})

    for given, name, expected in (
        ((768, 16, 224, 512, 512), "clip_vit_b_16", dict(image_size=224, text_heads=8)),
        ((768, 32, 256, 512, 512), "clip_vit_b_32", dict(image_size=256, text_heads=8)),
        ((1024, 14, 336, 768, 768), "clip_vit_l_14", dict(image_size=336, text_heads=12, projection_dim=768, context_length=77)),
    ):
        found, options = infer_architecture(shapes(*given), "x.pt")
        assert found == name and expected.items() <= options.items() and "plain_gelu" not in options
        family, _, sizes = published_architecture(shapes(*given), "x.pt")
        assert family == "clip_dense" and sizes["patch_size" if name != "clip_vit_b_16" else "image_layers"]
    with pytest.raises(CheckpointError, match=r"1280 wide, with patches of 14 pixels; known are clip_vit_b_16 \(768, 16\)"):
        infer_architecture(shapes(1280, 14, 224, 1024, 1024), "x.pt")


def test_activation(state, tmp_path, caplog):
    """OpenAI's files tell by themselves, open_clip's by the configuration beside them; else it is said what is assumed."""

    def activation(name, **overrides):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model, _ = load_model(tmp_path / name, class_names=NAMES, overrides=FEW | overrides)
        return type(model.clip.visual.transformer.resblocks[0].mlp.gelu).__name__, "does not say which activation" in caplog.text

    torch.save(openai_state(state), tmp_path / "openai.pt")
    torch.save({key: value for key, value in openai_state(state).items() if key not in COUNTERS}, tmp_path / "mixed.pt")
    torch.save(state, tmp_path / "unknown.pt")
    assert activation("openai.pt") == activation("mixed.pt") == ("QuickGELU", False)
    assert activation("unknown.pt") == ("QuickGELU", True)
    assert activation("unknown.pt", plain_gelu=True) == ("GELU", False)
    for sizes, expected in (({}, "GELU"), ({"quick_gelu": True}, "QuickGELU")):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 40} | sizes}))
        assert activation("unknown.pt") == (expected, False)
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="open_clip_config.json: not the configuration of a model of open_clip"):
        activation("unknown.pt")


def test_options(state, tmp_path):
    torch.save(openai_state(state), tmp_path / "openai.pt")
    outputs = {}
    for variant in ("clip", "sclip", "naclip"):
        model, task = load_model(tmp_path / "openai.pt", class_names=NAMES, overrides=FEW | {"dense_attention": variant})
        outputs[variant] = predicted(model, task)
    assert torch.equal(outputs["clip"].image_scores, outputs["sclip"].image_scores)
    assert not torch.allclose(outputs["clip"].class_logits, outputs["sclip"].class_logits, atol=1e-3)
    with pytest.raises(ValueError, match="unknown dense_attention 'gem'; known: clip, maskclip"):
        load_model(tmp_path / "openai.pt", class_names=NAMES, overrides=FEW | {"dense_attention": "gem"})
    with pytest.raises(CheckpointError, match="unknown option attention"):
        load_model(tmp_path / "openai.pt", class_names=NAMES, overrides={"attention": "sclip"})
    with pytest.raises(TokenizerError, match="no bpe_simple_vocab_16e6.txt.gz"):
        load_model(tmp_path / "openai.pt", class_names=NAMES, overrides={"bpe_dir": str(tmp_path)})
    with pytest.raises(ValueError, match="CLIP needs --text-tokenizer clip_bpe"):
        load_model(tmp_path / "openai.pt", class_names=NAMES, overrides={"vocab_size": 7})
    with pytest.raises(CheckpointError, match="give --class-names"):
        load_model(tmp_path / "openai.pt")


def test_permuted_names_permute_the_outputs(state, tmp_path):
    torch.save(openai_state(state), tmp_path / "openai.pt")
    first = predicted(*load_model(tmp_path / "openai.pt", class_names="cat, sky, traffic light", overrides=FEW))
    second = predicted(*load_model(tmp_path / "openai.pt", class_names="traffic light, cat, sky", overrides=FEW))
    torch.testing.assert_close(second.class_logits, first.class_logits[:, [2, 0, 1]], atol=1e-6, rtol=0)
    torch.testing.assert_close(second.image_scores, first.image_scores[:, [2, 0, 1]], atol=1e-6, rtol=0)


def test_class_vectors_are_kept(state, tmp_path, cache, monkeypatch):
    """By text tower, activation and prompts; the image tower has no say."""
    torch.save(state, tmp_path / "a.pt")
    other = {key: value + (0.1 if key == "visual.proj" else 0) for key, value in state.items()}
    torch.save(other, tmp_path / "b.pt")
    first, _ = load_model(tmp_path / "a.pt", class_names=NAMES, overrides=FEW)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(ClipDense, "embed_text", None)
        for name, variant in (("a.pt", "clip"), ("b.pt", "naclip")):
            again, _ = load_model(tmp_path / name, class_names=NAMES, overrides=FEW | {"dense_attention": variant})
            assert torch.equal(again.class_embeddings(), first.class_embeddings())
    plain, _ = load_model(tmp_path / "a.pt", class_names=NAMES, overrides=FEW | {"plain_gelu": True})
    assert len(list(cache.iterdir())) == 2 and not torch.equal(plain.class_embeddings(), first.class_embeddings())
    load_model(tmp_path / "a.pt", class_names="dog", overrides=FEW)
    assert len(list(cache.iterdir())) == 3
    for file in cache.iterdir():
        file.write_bytes(b"x")
    again, _ = load_model(tmp_path / "a.pt", class_names=NAMES, overrides=FEW)
    assert torch.equal(again.class_embeddings(), first.class_embeddings())


def test_export_and_back(state, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    model, task = load_model(tmp_path / "a.pt", class_names=NAMES, overrides=FEW | {"dense_attention": "clearclip", "plain_gelu": True})
    groups = {"model": (model.config, "clip_dense"), "task": (task.cfg, "dense_segmentation")}
    cfg = {group: OmegaConf.to_container(part, enum_to_str=True) | {"_name": name} for group, (part, name) in groups.items()}
    export_safetensors(model, cfg, tmp_path / "out" / "exported.safetensors", task.vocabulary)
    again, its_task = load_model(tmp_path / "out" / "exported.safetensors")
    assert its_task.vocabulary.names == task.vocabulary.names and again.attention == model.attention
    assert all(torch.equal(a, b) for a, b in zip(predicted(again, its_task), predicted(model, task)))


class Program(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return x + self.weight


def test_wrong_files(state, tmp_path):
    torch.jit.save(torch.jit.script(Program()), tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match="wrong.pt: no word embedding; this is no OFA or IFSeg checkpoint"):
        load_model(tmp_path / "wrong.pt", class_names=NAMES, overrides=FEW)
    resnet = {"visual.layer1.0.conv1.weight" if key == "visual.class_embedding" else key: value for key, value in state.items()}
    huggingface = {"vision_model.embeddings.class_embedding": torch.zeros(3), "text_model.final_layer_norm.weight": torch.zeros(3)}
    bert = {key: value for key, value in state.items() if key != "token_embedding.weight"}
    longer = state | {"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(64)}
    for content, message in (
        (resnet, r"image tower is no vision transformer of CLIP's own kind \(no visual\.class_embedding\)"),
        (huggingface, "CLIP in the layout of transformers"),
        (bert, r"text tower is not CLIP's own \(no token_embedding\.weight\)"),
        (longer, r"no CLIP checkpoint of the architecture.*ls_1\.gamma: unknown"),
    ):
        torch.save(content, tmp_path / "wrong.pt")
        with pytest.raises(CheckpointError, match=message) as error:
            load_model(tmp_path / "wrong.pt", class_names=NAMES, overrides=FEW)
        assert str(error.value).startswith(str(tmp_path / "wrong.pt"))


def test_without_classes(state, cache, tmp_path):
    """`load_dual_encoder` needs no class names and keeps no vectors; its towers and tokenizer are those of `load_model`."""
    torch.save(openai_state(state), tmp_path / "clip.pt")
    model, task = load_dual_encoder(tmp_path / "clip.pt", overrides=FEW)
    assert isinstance(model, ClipDense) and not cache.exists()
    other, other_task = load_model(tmp_path / "clip.pt", class_names=NAMES, overrides=FEW)
    vectors = model.embed_text(*task.tokenize(["a photo of a cat.", "a photo of a traffic light.", "a photo of a sky."]))
    torch.testing.assert_close(vectors.detach(), other.class_embeddings(), atol=1e-5, rtol=1e-5)
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    maps = task.similarity_maps(model, photo, ["cat", "traffic light", "sky"], templates=("a photo of a {}.",))
    expected = predicted(other, other_task)
    np.testing.assert_allclose(maps.cosines, expected.class_logits[0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(maps.scores, expected.image_scores[0].detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "shape", "nan"])
def test_damaged_class_vectors_are_made_again(state, cache, tmp_path, caplog, damage):
    torch.save(openai_state(state), tmp_path / "clip.pt")
    expected = load_model(tmp_path / "clip.pt", class_names=NAMES, overrides=FEW)[0].class_embeddings()
    file = next(cache.iterdir())
    wrong = {"shape": expected[:2].clone(), "nan": expected * float("nan")}
    file.write_bytes(file.read_bytes()[:-9] if damage == "cut" else save({"vectors": wrong[damage]}))
    with caplog.at_level(logging.WARNING):
        again = load_model(tmp_path / "clip.pt", class_names=NAMES, overrides=FEW)[0].class_embeddings()
    assert torch.equal(again, expected) and "class vectors cannot be read" in caplog.text
