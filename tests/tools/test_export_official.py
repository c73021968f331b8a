"""Checkpoints of training in the layouts of official codes: entries, values, and what cannot be written."""

from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ofaseg.checkpoints import load_model, load_state
from ofaseg.checkpoints.fusioner import load_towers
from ofaseg.models import freeseg
from ofaseg.models.freeseg_state import to_ours
from ofaseg.models.fusioner import Fusioner, architecture_config
from tests.checkpoints.clip_files import nano_state
from tests.models.one_layer import one_layer
from tests.toy_simseg import write_simseg
from tools.export_official import main

ASSETS = Path(__file__).resolve().parent.parent.parent / "ofaseg" / "assets" / "shapes"


def write_fusioner(folder, **options) -> str:
    """A checkpoint as fairseq-train leaves it, trained parts alone, beside the file of its towers; returns the checkpoint."""
    save_file(nano_state(), folder / "clip.safetensors")
    torch.manual_seed(6)
    config = architecture_config("fusioner_nano", clip_checkpoint=str(folder / "clip.safetensors"), **options)
    model = Fusioner(config)
    load_towers(model)
    config = OmegaConf.to_container(OmegaConf.create(vars(config)), enum_to_str=True) | {"_name": "fusioner_nano"}
    task = {"_name": "fusion_segmentation", "text_tokenizer": "clip_bpe", "text_length": 77, "patch_image_size": 32, "templates": "photo"}
    torch.save({"model": model.state_dict(), "cfg": {"model": config, "task": task}}, folder / "checkpoint_last.pt")
    return str(folder / "checkpoint_last.pt")


def test_fusioner_with_its_towers_from_a_file_that_moved(tmp_path, capsys):
    checkpoint, out = write_fusioner(tmp_path), tmp_path / "official.pt"
    moved = (tmp_path / "clip.safetensors").rename(tmp_path / "towers.safetensors")
    arguments = [checkpoint, str(out), "--class-names", "cat, sky"]
    assert main(arguments) == 2 and "sha256" in capsys.readouterr().err and not out.exists()
    assert main([*arguments, "--override", f"clip_checkpoint={moved}"]) == 0
    official, trained, clip = torch.load(out, weights_only=True)["model"], load_state(checkpoint)["model"], nano_state()
    own = {key: value for key, value in trained.items() if not key.startswith("towers.")}
    assert official.keys() == own.keys() | {_official(key) for key in clip}
    assert all(torch.equal(official[key], value) for key, value in own.items())
    assert all(torch.equal(official[_official(key)], value) for key, value in clip.items())
    again, _ = load_model(out, class_names="cat, sky", overrides={"fusion_heads": 4, "templates": "photo"})
    assert torch.equal(again.fusion.cls_emb, trained["fusion.cls_emb"])


def _official(key: str) -> str:
    return f"img_model.{key.removeprefix('visual.')}" if key.startswith("visual.") else f"text_model.{key}"


def test_fusioner_of_another_tower_is_refused(tmp_path, capsys):
    checkpoint = write_fusioner(tmp_path, image_tower="simseg_nano", random_towers=True)
    assert main([checkpoint, str(tmp_path / "official.pt"), "--class-names", "cat, sky"]) == 2
    assert "towers of CLIP only" in capsys.readouterr().err and not (tmp_path / "official.pt").exists()


def test_simseg(tmp_path):
    with one_layer():
        checkpoint = write_simseg(tmp_path)
        assert main([checkpoint, str(tmp_path / "official.pth"), "--class-names", "red, blue"]) == 0
    ours, official = load_state(checkpoint)["model"], load_state(tmp_path / "official.pth")["model"]
    assert ours.keys() == official.keys() and all(torch.equal(ours[key], official[key]) for key in ours)
    assert torch.load(tmp_path / "official.pth")["state_dict"].keys() != ours.keys(), "the entries have their official names"


def test_freeseg(tmp_path):
    torch.manual_seed(7)
    model, checkpoint = freeseg.FreeSeg(freeseg.architecture_config("freeseg_nano")), tmp_path / "checkpoint_last.pt"
    config = OmegaConf.to_container(OmegaConf.create(vars(model.config)), enum_to_str=True) | {"_name": "freeseg_nano"}
    task = {"_name": "unified_segmentation", "random_towers": True}
    torch.save({"model": model.state_dict(), "cfg": {"model": config, "task": task}}, checkpoint)
    assert main([str(checkpoint), str(tmp_path / "official.pth"), "--class-names", "cat, dog, sky"]) == 0
    official, trained = torch.load(tmp_path / "official.pth", weights_only=True)["model"], model.state_dict()
    assert official["criterion.empty_weight"].tolist()[:3] == [1, 1, 1] and len(official["criterion.empty_weight"]) == 4
    assert {key.split(".")[0] for key in official} == {"backbone", "sem_seg_head", "criterion", "clip_adapter"}
    again = to_ours(official)
    assert all(torch.equal(again[key], value) for key, value in trained.items())


def test_a_method_without_an_official_layout_is_refused(tmp_path, capsys):
    assert main([str(ASSETS / "segofa_nano.safetensors"), str(tmp_path / "official.pt")]) == 2
    assert "official layouts are written of Fusioner, SimSeg, FreeSeg" in capsys.readouterr().err
