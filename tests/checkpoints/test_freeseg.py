"""FreeSeg checkpoints: the official keys, there and back; what a file is of; parts of other files; files that do not fit."""

import collections
import os
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")

from ofaseg.checkpoints.array_pickle import load_arrays  # noqa: E402
from ofaseg.checkpoints.freeseg import (  # noqa: E402
    backbone_to_ours,
    export_official,
    infer_architecture,
    is_freeseg,
    load_clip,
    load_image_encoder,
    load_prompts,
)
from ofaseg.checkpoints.safe import load_state  # noqa: E402
from ofaseg.models.freeseg import ARCHITECTURES, FreeSeg, architecture_config  # noqa: E402
from ofaseg.models.freeseg_state import CONSTANTS, is_official, to_official, to_ours  # noqa: E402
from ofaseg.models.image_encoders.feature_pyramid import build_pyramid  # noqa: E402
from ofaseg.models.state import CheckpointError  # noqa: E402

START, END = 49406, 49407


def build(seed: int, **options) -> FreeSeg:
    torch.manual_seed(seed)
    return FreeSeg(architecture_config("freeseg_nano", **options), [[[START, 320, END]], [[START, 5, 6, END]]])


@pytest.fixture(scope="module")
def nano():
    return build(1)


@pytest.fixture(scope="module")
def published():
    """Official keys and shapes of both published architectures, without memory: (model's state, official state)."""
    states = {}
    for name in ("freeseg_r50", "freeseg_r101c"):
        with torch.device("meta"):
            own = FreeSeg(architecture_config(name)).state_dict()
        states[name] = (own, to_official(own, classes=156))
    return states


# ---- the official layout ----


def test_published_layouts(published):
    """902 and 1167 keys, as many per part as the published files have; a few names and shapes, written out."""
    for name, total, backbone in (("freeseg_r50", 902, 265), ("freeseg_r101c", 1167, 530)):
        official = published[name][1]
        assert len(official) == total
        heads = collections.Counter(key.split(".")[0] for key in official)
        assert heads == {"backbone": backbone, "sem_seg_head": 325, "criterion": 1, "clip_adapter": 311}
        assert len([key for key in official if key.startswith("clip_adapter.clip_model.")]) == 302
    shapes = {
        "backbone.stem.conv3.norm.running_var": (128,),
        "backbone.res5.2.conv3.weight": (2048, 512, 1, 1),
        "backbone.res2.0.shortcut.norm.bias": (256,),
        "sem_seg_head.pixel_decoder.input_proj.1.0.weight": (256, 1024, 1, 1),
        "sem_seg_head.pixel_decoder.transformer.level_embed": (3, 256),
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.5.self_attn.sampling_offsets.weight": (192, 256),
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.linear1.weight": (1024, 256),
        "sem_seg_head.pixel_decoder.layer_1.weight": (256, 256, 3, 3),
        "sem_seg_head.pixel_decoder.adapter_1.norm.weight": (256,),
        "sem_seg_head.predictor.transformer_self_attention_layers.9.self_attn.in_proj_weight": (768, 256),
        "sem_seg_head.predictor.transformer_cross_attention_layers.0.multihead_attn.out_proj.bias": (256,),
        "sem_seg_head.predictor.transformer_cross_attention_layers.0.norm.bias": (256,),
        "sem_seg_head.predictor.transformer_ffn_layers.3.linear2.weight": (256, 2048),
        "sem_seg_head.predictor.query_feat.weight": (100, 256),
        "sem_seg_head.predictor.class_embed.layers.1.weight": (512, 1024),
        "sem_seg_head.predictor.mask_embed.layers.2.bias": (256,),
        "sem_seg_head.interaction.attn.k_proj.weight": (2048, 512),
        "sem_seg_head.interaction.layer_norm_k_1.weight": (512,),
        "criterion.empty_weight": (157,),
        "clip_adapter.non_object_embedding": (1, 512),
        "clip_adapter.pixel_std": (1, 3, 1, 1),
        "clip_adapter.prompt_learner.prefix_prompt": (16, 512),
        "clip_adapter.prompt_learner.pad_signal": (1, 512),
        "clip_adapter.clip_model.token_embedding.weight": (49408, 512),
    }
    assert {key: tuple(published["freeseg_r101c"][1][key].shape) for key in shapes} == shapes


def test_what_a_file_is_of(published):
    for name, (own, official) in published.items():
        assert is_official(official) and not is_official(own)
        ours = to_ours({f"module.{key}": value for key, value in official.items()})
        assert set(ours) - set(CONSTANTS) == set(own) and is_freeseg(ours)
        found, options = infer_architecture(ours, "file")
        assert found == name and architecture_config(found, **options) == architecture_config(name)
    with pytest.raises(CheckpointError, match="file: no FreeSeg checkpoint"):
        infer_architecture({"a": torch.zeros(1)}, "file")


def test_there_and_back(nano, tmp_path):
    """An exported file read again is the same to the bit; so is what is exported from that."""
    path = tmp_path / "model.pth"
    export_official(nano, path)
    weights = load_state(path)["model"]
    assert weights["criterion.empty_weight"].tolist() == pytest.approx([1, 1, 0.1])
    other = build(2)
    state = dict(weights)
    report = other.upgrade_state(state)
    assert report.dropped == list(CONSTANTS) and report.filled == report.resized == []
    other.load_state_dict(state, strict=True)
    again = to_official(other.state_dict(), classes=2)
    assert list(again) == list(weights)
    assert all(torch.equal(again[key], value) and again[key].dtype == value.dtype for key, value in weights.items())


def test_a_second_adapter_is_left_out(nano):
    state = to_official(nano.state_dict(), 2)
    state |= {f"_region_{key}": value for key, value in state.items() if key.startswith("clip_adapter.")}
    report = nano.upgrade_state(state)
    assert set(state) == set(nano.state_dict()) and any(key.startswith("_region_clip_adapter.") for key in report.dropped)


def test_plain_mask2former(nano):
    """Nine layers, linear classes, no texts; old names as well. What it lacks keeps the model's own values."""
    model = build(3, decoder_layers=10)
    donor = to_official(build(4, decoder_layers=10).state_dict())
    state = {key: value for key, value in donor.items() if key.startswith(("backbone.", "sem_seg_head.p"))}
    state = {key: value for key, value in state.items() if "_layers.9." not in key and "class_embed" not in key}
    state |= {f"sem_seg_head.predictor.class_embed.{name}": torch.zeros(3, 64) for name in ("weight", "bias")}
    state["criterion.empty_weight"] = torch.ones(4)
    old = {
        key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): value
        for key, value in state.items()
    }
    for file in (state, old):
        file = dict(file)
        report = model.upgrade_state(file)
        assert set(file) == set(model.state_dict())
        assert {key.split(".")[0] for key in report.filled} == {"predictor", "interaction", "no_object", "prompt", "clip"}
        assert all("layers.9." in key or "class_embed" in key for key in report.filled if key.startswith("predictor."))
        assert torch.equal(file["predictor.query_features"], donor["sem_seg_head.predictor.query_feat.weight"])
        assert torch.equal(file["pixel_decoder.fuse.conv.weight"], donor["sem_seg_head.pixel_decoder.layer_1.weight"])


def test_files_that_do_not_fit(nano):
    state = to_official(nano.state_dict())
    with pytest.raises(CheckpointError, match="holds learned prompts only"):
        nano.upgrade_state({key: value for key, value in state.items() if "clip_model" in key or "prompt_learner" in key})
    state["sem_seg_head.predictor.query_feat.weight"] = torch.zeros(3, 64)
    with pytest.raises(CheckpointError, match=r"predictor\.query_features: shape \(3, 64\), expected \(20, 64\)"):
        nano.upgrade_state(state)


# ---- parts ----


def test_prompts_of_either_stage(nano, tmp_path):
    full, stage1, model = tmp_path / "full.pth", tmp_path / "stage1.pth", build(5)
    export_official(nano, full)
    official = to_official(nano.state_dict())
    keep = ("clip_adapter.clip_model.", "clip_adapter.prompt_learner.")
    torch.save({"model": {key: value for key, value in official.items() if key.startswith(keep)}, "iteration": 7}, stage1)
    for path in (full, stage1):
        with torch.no_grad():
            model.prompt.class_prompt.zero_()
            before = model.class_embeddings()
            load_prompts(model, path)
            assert torch.equal(model.prompt.class_prompt, nano.prompt.class_prompt)
            assert not torch.equal(model.class_embeddings(), before)
    torch.save({"model": {"backbone.stem.conv1.weight": torch.zeros(1)}}, full)
    with pytest.raises(CheckpointError, match="full.pth: holds no learned prompts"):
        load_prompts(model, full)
    with pytest.raises(CheckpointError, match="missing.pth: checkpoint not found"):
        load_prompts(model, tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match=r"prompts that do not fit.*prompt\.class_prompt: shape"):
        load_prompts(build(6, class_prompt_length=4), stage1)


def test_clip_of_a_file(nano, tmp_path):
    """A plain CLIP file; the fixed tokens of the prompts come from its word embedding."""
    path, model = tmp_path / "clip.pt", build(7)
    torch.save({key.removeprefix("clip."): value for key, value in nano.state_dict().items() if key.startswith("clip.")}, path)
    load_clip(model, path)
    assert torch.equal(model.clip.visual.proj, nano.clip.visual.proj)
    assert torch.equal(model.prompt.end_signal[0], nano.clip.token_embedding.weight[END])
    with pytest.raises(CheckpointError, match="no CLIP of the sizes"):
        load_clip(build(8, text_layers=1), path)


def as_detectron2(weights) -> dict[str, np.ndarray]:
    """A ResNet's entries in the names of detectron2's model zoo, which have no prefix, and with its classifier."""
    state = to_official({f"image_encoder.{key}": value for key, value in weights.items()})
    return {key.removeprefix("backbone."): value.numpy() for key, value in state.items()} | {"stem.fc.weight": np.zeros((3, 4))}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_backbone_of_a_pickle(tmp_path, protocol):
    path, model, weights = tmp_path / "R-50.pkl", build(9), build_pyramid("resnet_nano").state_dict()
    arrays = collections.OrderedDict(as_detectron2(weights))
    arrays["stem.conv1.weight"] = np.asfortranarray(arrays["stem.conv1.weight"].astype(">f8"))
    with path.open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "somebody", "matching_heuristics": True, "n": np.float64(2)}, file, protocol)
    load_image_encoder(model, path)
    assert all(torch.equal(model.image_encoder.state_dict()[key], value) for key, value in weights.items())


def test_backbone_in_other_names(tmp_path):
    """torchvision's names, with counters and classifier; another backbone is one error."""
    path, model, weights = tmp_path / "resnet.pth", build(10), build_pyramid("resnet_nano").state_dict()
    torch.save({**weights, "fc.weight": torch.zeros(2, 2), "bn1.num_batches_tracked": torch.tensor(3)}, path)
    load_image_encoder(model, path)
    assert torch.equal(model.image_encoder.layer2[0].bn3.running_mean, weights["layer2.0.bn3.running_mean"])
    detectron = {f"backbone.bottom_up.{key}": torch.from_numpy(value) for key, value in as_detectron2(weights).items()}
    assert set(backbone_to_ours(detectron)) == set(weights)
    with pytest.raises(CheckpointError, match="not the backbone resnet_nano; .*missing"):
        torch.save({"conv1.weight": torch.zeros(1)}, path)
        load_image_encoder(model, path)


# ---- pickles that are more than arrays ----


class Shout:
    def __reduce__(self):
        return os.mkdir, ("shouted",)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {"a": Shout()}}, r"it mentions (posix|os|nt)\.mkdir"),
        ({"model": {"a": np.array([Shout()], dtype=object)}}, "it mentions|an array of"),
        ({"model": {"a": np.array(["text"])}}, "an array of type"),
        ({"model": {"a": np.zeros(2, dtype="datetime64[s]")}}, "an array of type"),
        ({"model": {"a": 3}}, "no arrays by name"),
        ([1, 2], "no arrays by name"),
    ],
)
def test_nothing_but_arrays_is_read(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(CheckpointError, match=message):
        load_arrays(tmp_path / "bad.pkl")
    assert not (tmp_path / "shouted").exists()


def test_damaged_pickles(tmp_path):
    path = tmp_path / "R-50.pkl"
    with pytest.raises(CheckpointError, match="R-50.pkl: checkpoint not found"):
        load_arrays(path)
    whole = pickle.dumps({"a": np.arange(6.0).reshape(2, 3)}, 2)
    path.write_bytes(whole)
    assert load_arrays(path)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for damaged in (b"", b"not a pickle", whole[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="R-50.pkl: damaged"):
            load_arrays(path)
    path.write_bytes(whole.replace(b"K\x02K\x03", b"K\x02K\x09"))
    with pytest.raises(CheckpointError, match=r"an array of shape \(2, 9\) with 48 bytes"):
        load_arrays(path)


def test_every_option_is_told_by_a_file():
    """What cannot be read from weights has its published value in every named architecture but the nano one."""
    assert set(ARCHITECTURES) == {"freeseg_r50", "freeseg_r101c", "freeseg_nano"}
