"""Fusioner's files: published checkpoints both ways, our own without towers, towers in every layout, wrong towers and activations."""

import json
import logging
import re
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ofaseg.checkpoints import CheckpointError, export_safetensors, load_model, load_state
from ofaseg.checkpoints.fusioner import export_official, infer_architecture, load_towers
from ofaseg.checkpoints.restore import published_architecture
from ofaseg.models.fusioner import Fusioner, architecture_config
from tests.checkpoints.clip_files import nano_state, openai_state, text_apart

NAMES = "cat, trafficlight, sky"
FEW = {"templates": "photo", "patch_image_size": 32}


@pytest.fixture(scope="module")
def clip():
    return nano_state()


def build(**options) -> Fusioner:
    torch.manual_seed(6)
    return Fusioner(architecture_config("fusioner_nano", **options))


@pytest.fixture(scope="module")
def model(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("towers") / "clip.safetensors"
    save_file(clip, path)
    model = build(clip_checkpoint=str(path))
    load_towers(model)
    return model.eval()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A checkpoint as fairseq-train writes it."""
    path = tmp_path_factory.mktemp("run") / "checkpoint_best.pt"
    task = {"_name": "dense_segmentation", "text_tokenizer": "clip_bpe", "text_length": 77}
    torch.save({"model": model.state_dict(), "cfg": {"model": options_of(model), "task": task}}, path)
    return path


def options_of(model) -> dict:
    config = model.config if OmegaConf.is_config(model.config) else OmegaConf.create(vars(model.config))
    return OmegaConf.to_container(config, enum_to_str=True) | {"_name": "fusioner_nano"}


def predicted(model, task):
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return model.predict(**task.encode_image_for_predict(photo)["net_input"])


def assert_same(model, other) -> None:
    for one, two in ((model, other), (model.towers.image, other.towers.image), (model.towers.text, other.towers.text)):
        states = one.state_dict(), two.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# ---- the published layout ----


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_file(model, tmp_path, prefix):
    """Recognised, loaded strictly, and written back with the same names and bytes."""
    export_official(model, tmp_path / "fusioner.pt")
    official = torch.load(tmp_path / "fusioner.pt", weights_only=True)["model"]
    assert len(official) == 123  # as in the golden file, 111, and the twelve of a third block
    torch.save({"model": {prefix + key: value for key, value in official.items()}}, tmp_path / "given.pt")
    loaded, task = load_model(tmp_path / "given.pt", class_names=NAMES, overrides=FEW | {"fusion_heads": 4})
    assert isinstance(loaded, Fusioner) and not loaded.towers.missing and not loaded.training
    assert_same(loaded, model)
    export_official(loaded, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    assert list(again) == list(official)
    assert all(torch.equal(again[key].view(torch.uint8), official[key].view(torch.uint8)) for key in official if official[key].ndim)
    assert predicted(loaded, task).class_logits.shape == (1, 3, 32, 32)
    assert task.templates[0] == "a photo of a {}." and task.cfg.text_length == 77


def test_how_a_published_file_is_evaluated(model, tmp_path):
    export_official(model, tmp_path / "fusioner.pt")
    _, task = load_model(tmp_path / "fusioner.pt", class_names="cat")
    assert len(task.class_prompts[0]) == 32 and task.cfg.patch_image_size == 32 and task.grid_stride == 8 and task.zero_shot is None


def official_shapes(width, patch, layers, text_width, dim, prefix=""):
    """Entries of a published file without data: section 3 of the digest."""
    shapes = {
        "img_model.class_embedding": (width,), "img_model.positional_embedding": (1 + (224 // patch) ** 2, width),
        "img_model.proj": (width, dim), "img_model.conv1.weight": (width, 3, patch, patch),
        "text_model.positional_embedding": (77, text_width), "text_model.text_projection": (text_width, dim),
        "text_model.logit_scale": (), "text_model.token_embedding.weight": (49408, text_width),
        "fusion.cls_emb": (1, 512), "fusion.proj_patch": (512, 512), "fusion.proj_classes": (512, 512),
    }  # fmt: skip

    def pair(name, *weight):
        shapes.update({f"{name}.weight": weight, f"{name}.bias": weight[:1]})

    def blocks(name, count, wide):
        for i in range(count):
            block = f"{name}.transformer.resblocks.{i}"
            shapes.update({f"{block}.attn.in_proj_weight": (3 * wide, wide), f"{block}.attn.in_proj_bias": (3 * wide,)})
            pair(f"{block}.attn.out_proj", wide, wide)
            pair(f"{block}.mlp.c_fc", 4 * wide, wide)
            pair(f"{block}.mlp.c_proj", wide, 4 * wide)
            pair(f"{block}.ln_1", wide)
            pair(f"{block}.ln_2", wide)

    blocks("img_model", layers, width)
    blocks("text_model", 12, text_width)
    for name in ("img_model.ln_pre", "img_model.ln_post"):
        pair(name, width)
    pair("text_model.ln_final", text_width)
    for kind in ("visual", "text"):
        pair(f"fusion.{kind}_proj.0", dim)
        pair(f"fusion.{kind}_proj.1", 512, dim)
    pair("fusion.visual_proj.2", 512)
    pair("fusion.norm", 512)
    for i in range(12):
        for name, *shape in (("attn.qkv", 1536, 512), ("attn.proj", 512, 512), ("mlp.fc1", 2048, 512), ("mlp.fc2", 512, 2048)):
            pair(f"fusion.blocks.{i}.{name}", *shape)
        pair(f"fusion.blocks.{i}.norm1", 512)
        pair(f"fusion.blocks.{i}.norm2", 512)
    for i in range(4):
        pair(f"decoder.conv_{i}", 512, 512, 3, 3)
    pair("decoder.conv_4", 512, 512, 1, 1)
    return {prefix + key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize(
    "sizes, name, entries, image_size",
    [
        ((1024, 14, 24, 768, 768), "fusioner_vit_l14", 615, 224),
        ((768, 32, 12, 512, 512), "fusioner_vit_b32", 471, 224),
        ((768, 16, 12, 512, 512), "fusioner_vit_b16", 471, 224),
    ],
)
def test_sizes_of_the_published_models(sizes, name, entries, image_size):
    """Named by shapes alone, and every entry has its place in a model of that name (which is built without memory)."""
    weights = official_shapes(*sizes)
    assert len(weights) == entries
    family, found, options = published_architecture(weights, "x.pt")
    assert (family, found, options["image_size"], options["fusion_heads"]) == ("fusioner", name, image_size, 8)
    assert infer_architecture(official_shapes(*sizes, prefix="module."), "x.pt") == (name, options)
    with torch.device("meta"):
        model = Fusioner(architecture_config(name))
    assert {key: value.shape for key, value in model.official_state().items()} == {key: value.shape for key, value in weights.items()}
    assert architecture_config(name, **options) == architecture_config(name)


def test_published_files_of_unknown_sizes(model):
    weights = official_shapes(896, 14, 24, 768, 768)
    with pytest.raises(CheckpointError, match="x.pt: a CLIP whose image tower is 896 wide"):
        infer_architecture(weights, "x.pt")
    with pytest.raises(CheckpointError, match="x.pt: trained parts of Fusioner without a configuration"):
        infer_architecture(model.state_dict(), "x.pt")


# ---- our own checkpoints ----


def test_own_checkpoints_hold_what_was_trained(model, run):
    state = load_state(run)["model"]
    assert {key.split(".")[0] for key in state} == {"fusion", "decoder", "towers"}
    assert {key: value.shape for key, value in state.items() if key.startswith("towers.")} == {
        "towers.image_sha256": (32,),
        "towers.text_sha256": (32,),
    }
    loaded, task = load_model(run, class_names=NAMES, overrides=FEW)
    assert_same(loaded, model)
    assert predicted(loaded, task).class_logits.shape == (1, 3, 32, 32)


def test_towers_beside_the_checkpoint(model, clip, run, tmp_path):
    """A recorded path that is gone: the file of that name beside the checkpoint, else one message with the sha256."""
    state = torch.load(run, weights_only=True)
    state["cfg"]["model"]["clip_checkpoint"] = "/gone/clip.safetensors"
    torch.save(state, tmp_path / "moved.pt")
    digest = bytes(state["model"]["towers.image_sha256"].tolist()).hex()
    with pytest.raises(CheckpointError, match=f"/gone/clip.safetensors: .*image tower not found.*clip_checkpoint=FILE.*sha256 {digest}"):
        load_model(tmp_path / "moved.pt", class_names=NAMES, overrides=FEW)
    save_file(clip, tmp_path / "clip.safetensors")
    assert_same(load_model(tmp_path / "moved.pt", class_names=NAMES, overrides=FEW)[0], model)


@pytest.mark.parametrize("kind, entry", [("image", "visual.proj"), ("text", "text_projection")])
def test_another_tower_than_in_training(clip, model, run, tmp_path, kind, entry):
    other = clip | {entry: clip[entry] + 1e-3}
    save_file(other, tmp_path / "other.safetensors")
    expected, file = bytes(model.towers.sha256(kind).tolist()).hex(), re.escape(str(tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match=f"another {kind} tower: its weights have sha256 {expected}, those of {file} have"):
        load_model(run, class_names=NAMES, overrides=FEW | {"clip_checkpoint": str(tmp_path / "other.safetensors")})


def test_fairseq_resumes_only_with_the_same_towers(model):
    """Strict loading as the trainer does it."""
    other = build(random_towers=True)
    load_towers(other)
    with pytest.raises(CheckpointError, match="another image tower.*those of random start values"):
        other.load_state_dict(model.state_dict(), strict=True)
    same = build(clip_checkpoint=model.config.clip_checkpoint)
    load_towers(same)
    torch.nn.init.zeros_(same.fusion.cls_emb)
    same.load_state_dict(model.state_dict(), strict=True)
    assert_same(same, model)
    for change, message in (
        ({"fusion.extra": torch.zeros(1)}, "fusion.extra: unknown"),
        ({"fusion.cls_emb": torch.zeros(2)}, "cls_emb: shape"),
    ):
        with pytest.raises(CheckpointError, match=message):
            same.load_state_dict(model.state_dict() | change, strict=True)


def test_export_and_back(model, run, tmp_path):
    loaded, task = load_model(run, class_names=NAMES, overrides=FEW)
    cfg = {"model": options_of(loaded), "task": OmegaConf.to_container(task.cfg, enum_to_str=True) | {"_name": "dense_segmentation"}}
    export_safetensors(loaded, cfg, tmp_path / "exported.safetensors", task.vocabulary)
    about = json.loads((tmp_path / "exported.json").read_text())
    assert about["model"]["clip_checkpoint"] == "clip.safetensors"  # no place of this machine
    shutil.copy(model.config.clip_checkpoint, tmp_path)
    again, its_task = load_model(tmp_path / "exported.safetensors")
    assert its_task.vocabulary.names == task.vocabulary.names
    assert torch.equal(predicted(again, its_task).class_logits, predicted(loaded, task).class_logits)


def test_class_vectors_are_kept(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OFASEG_CACHE", str(tmp_path / "cache"))
    first, _ = load_model(run, class_names=NAMES, overrides=FEW)
    monkeypatch.setattr(Fusioner, "embed_text", None)
    again, _ = load_model(run, class_names=NAMES, overrides=FEW)
    assert torch.equal(again.class_embeddings(), first.class_embeddings())


# ---- files of towers ----


class Scripted(torch.nn.Module):
    """The weights of a state dict at their names, as a module that can be scripted."""

    def __init__(self, state: dict):
        super().__init__()
        for key, value in state.items():
            parent, (*path, name) = self, key.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, Scripted({}))
                parent = getattr(parent, part)
            if value.is_floating_point():
                parent.register_parameter(name, torch.nn.Parameter(value.clone()))
            else:
                parent.register_buffer(name, value)

    def forward(self, x):
        return x


def test_layouts_of_clip(clip, tmp_path):
    """OpenAI's archive (read, not run), state dicts and safetensors give equal towers, and one sha256 for equal values."""
    half = openai_state(clip)
    torch.jit.save(torch.jit.script(Scripted(half)), tmp_path / "archive.pt")
    torch.save(half, tmp_path / "half.pt")
    save_file(half, tmp_path / "half.safetensors")
    torch.save(
        {"state_dict": text_apart({key: value.float() for key, value in half.items() if value.ndim or key == "logit_scale"})},
        tmp_path / "full.pt",
    )
    digests = set()
    for name in ("archive.pt", "half.pt", "half.safetensors", "full.pt"):
        model = build(clip_checkpoint=str(tmp_path / name))
        load_towers(model)
        for key, value in model.towers.image.state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, half[key].float()), key
        for key, value in model.towers.text.state_dict().items():
            assert torch.equal(value, half[key.removeprefix("clip.")].float()), key
        digests.add(bytes(model.towers.sha256("image").tolist()) + bytes(model.towers.sha256("text").tolist()))
    assert len(digests) == 1


def test_activation(clip, tmp_path, caplog):
    """Known from OpenAI's kind of file, or from the configuration beside it; else it is said what is assumed."""
    torch.save(openai_state(clip), tmp_path / "openai.pt")
    torch.save(clip, tmp_path / "unknown.pt")
    with pytest.raises(CheckpointError, match=r"openai.pt: trained with QuickGELU, but .* built with GELU; set plain_gelu=false"):
        load_towers(build(clip_checkpoint=str(tmp_path / "openai.pt"), plain_gelu=True))
    with caplog.at_level(logging.WARNING):
        load_towers(build(clip_checkpoint=str(tmp_path / "openai.pt")))
        assert "activation" not in caplog.text
        load_towers(build(clip_checkpoint=str(tmp_path / "unknown.pt")))
    assert "does not say which activation" in caplog.text
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 40}}))
    with pytest.raises(CheckpointError, match=r"unknown.pt: trained with GELU, but .* built with QuickGELU; set plain_gelu=true"):
        load_towers(build(clip_checkpoint=str(tmp_path / "unknown.pt")))


def test_one_tower_of_clip(clip, tmp_path):
    """The other comes from elsewhere; the whole file of CLIP is given all the same."""
    torch.save(openai_state(clip), tmp_path / "clip.pt")
    np.savez(tmp_path / "table.npz", names=np.array(["cat"]), vectors=np.ones((1, 5)))
    image_only = build(clip_checkpoint=str(tmp_path / "clip.pt"), text_tower="table", text_embeddings=str(tmp_path / "table.npz"))
    load_towers(image_only)
    assert torch.equal(image_only.towers.image.visual.proj, clip["visual.proj"].half().float())
    with pytest.raises(CheckpointError, match="holds towers of CLIP only; the text tower is another one"):
        export_official(image_only, tmp_path / "x.pt")
    text_only = build(clip_checkpoint=str(tmp_path / "clip.pt"), image_tower="resnet10t", random_towers=True)
    load_towers(text_only)
    assert torch.equal(text_only.towers.text.clip.text_projection, clip["text_projection"].half().float())
    assert not text_only.towers.missing


def test_tables_change_with_the_classes(clip, tmp_path):
    torch.save(openai_state(clip), tmp_path / "clip.pt")
    models = []
    for names in (["cat"], ["dog", "bird"]):
        np.savez(tmp_path / "table.npz", names=np.array(names), vectors=np.ones((len(names), 5)))
        options = dict(text_tower="table", text_embeddings=str(tmp_path / "table.npz"), clip_checkpoint=str(tmp_path / "clip.pt"))
        models.append(build(**options))
        load_towers(models[-1])
    models[1].load_state_dict(models[0].state_dict(), strict=True)


@pytest.mark.parametrize("prefix, entry", [("", None), ("module.base_encoder.", "state_dict"), ("backbone.", "model")])
def test_files_of_timm(tmp_path, prefix, entry):
    """Files with a head, as DINO, MoCo v3 and MAE leave them."""
    import timm

    weights = timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict()
    weights = {prefix + key: value for key, value in weights.items()} | {"module.momentum_encoder.cls_token": torch.zeros(1)}
    torch.save({entry: weights} if entry else weights, tmp_path / "vit.pt")
    model = build(image_tower="vit_tiny_patch16_224", image_checkpoint=str(tmp_path / "vit.pt"), random_towers=True)
    load_towers(model)
    own = model.towers.image.backbone.state_dict()
    assert all(torch.equal(value, weights[prefix + key]) for key, value in own.items()) and not model.towers.missing
    wrong = build(image_tower="resnet10t", image_checkpoint=str(tmp_path / "vit.pt"), random_towers=True)
    with pytest.raises(CheckpointError, match=r"vit.pt: no weights of the tower .* missing.*Check image_tower"):
        load_towers(wrong)


def test_mobilenet_of_arrays(real_data):
    """Real weights with folded norms, at stride 16."""
    path = str(real_data / "weights" / "mobilenet_v2_imagenet1001.npz")
    model = build(image_tower="mobilenet_v2_stride16", image_checkpoint=path, pixel_statistics="half", random_towers=True).eval()
    load_towers(model)
    with np.load(path) as arrays:
        assert torch.equal(model.towers.image.backbone.features[0][0].weight, torch.from_numpy(arrays["features.0.0.weight"]))
    output = model.towers.image_tokens(model.normalised(torch.zeros(1, 3, 64, 96, dtype=torch.uint8)))
    assert output[1] == (4, 6) and output[0].shape == (1, 24, 320)


def test_damaged_arrays(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="x.npz: weights cannot be read"):
        load_towers(build(image_tower="mobilenet_v2", image_checkpoint=str(tmp_path / "x.npz"), random_towers=True))
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    with pytest.raises(CheckpointError, match="x.npz: no weights of the tower that was asked for; .*missing"):
        load_towers(build(image_tower="mobilenet_v2", image_checkpoint=str(tmp_path / "x.npz"), random_towers=True))


def test_files_of_bert(tmp_path):
    from ofaseg.models.text_encoders.bert import BertTokens

    weights = BertTokens("bert_nano", 50).bert.state_dict()
    renamed = {
        "bert." + key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in weights.items()
    }
    torch.save(renamed | {"bert.pooler.dense.weight": torch.zeros(2), "cls.predictions.bias": torch.zeros(2)}, tmp_path / "bert.bin")
    model = build(text_tower="bert_nano", bert_vocab_size=50, text_checkpoint=str(tmp_path / "bert.bin"), random_towers=True)
    load_towers(model)
    assert all(torch.equal(value, weights[key]) for key, value in model.towers.text.tokens.bert.state_dict().items())


def test_wrong_files(clip, tmp_path):
    torch.save({key: value for key, value in clip.items() if key != "visual.ln_post.bias"}, tmp_path / "short.pt")
    torch.save(clip, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"short.pt: .*visual\.ln_post\.bias: missing"):
        load_towers(build(clip_checkpoint=str(tmp_path / "short.pt")))
    with pytest.raises(CheckpointError, match=r"clip.pt: .*shape \(40, 64\)|clip.pt: .*expected"):
        load_towers(build(clip_checkpoint=str(tmp_path / "clip.pt"), projection_dim=32))
    with pytest.raises(CheckpointError, match="nowhere.pt: weights of the frozen image tower not found"):
        load_towers(build(clip_checkpoint=str(tmp_path / "nowhere.pt")))
