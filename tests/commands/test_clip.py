"""The commands with a CLIP file of nano size, as a user would bring it."""

import json

import pytest
import torch
from PIL import Image

from ofaseg.cli import main
from tests.checkpoints.clip_files import nano_state, openai_state
from tests.toy import write_toy_shards

CPU = ["--device", "cpu", "--override", "templates=photo", "--override", "patch_image_size=32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(openai_state(nano_state()), path)
    return str(path)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("OFASEG_CACHE", "")


def test_predict(checkpoint, tmp_path):
    Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / "x.png")
    command = ["predict", str(tmp_path / "x.png"), "--checkpoint", checkpoint, "--class-names", "cat, dog", "--out", str(tmp_path), *CPU]
    assert main([*command, "--override", "dense_attention=sclip", "--override", "scales=1,1.5", "--flip"]) == 0
    about = json.loads((tmp_path / "x.json").read_text())
    assert about["class_names"] == ["cat", "dog"] and (about["height"], about["width"]) == (40, 50)
    assert about["post_process"]["scales"] == [1.0, 1.5] and about["post_process"]["refine"] == "none"
    assert main([*command, "--override", "dense_attention=sharp"]) == 2
    assert main([*command[:-6], "--device", "cpu", "--override", "window=30"]) == 1  # every photo fails: 30 is no multiple of the patch


def test_doctor(checkpoint, tmp_path, capsys):
    assert main(["doctor", checkpoint]) == 0
    state = torch.load(checkpoint)
    state["visual.proj"][0, 0] = float("nan")
    torch.save(state, tmp_path / "broken.pt")
    assert main(["doctor", str(tmp_path / "broken.pt")]) == 1
    assert "clip.visual.proj" in capsys.readouterr().out


def test_background_and_candidates(checkpoint, tmp_path):
    """With a background class, classes are chosen by the photo's vector, as for SimSeg."""
    Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / "x.png")
    command = ["predict", str(tmp_path / "x.png"), "--checkpoint", checkpoint, "--class-names", "background, dog, cat, sky"]
    assert main([*command, "--out", str(tmp_path), "--refine", "threshold", *CPU]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["post_process"]["candidates"]["background_class"] == 0


def test_evaluate(checkpoint, tmp_path):
    """Batches of photos of one size, sliding windows; windows as large as the photos change nothing."""
    write_toy_shards(tmp_path / "shards", "val", 4, sizes=((32, 48), (40, 32)))
    scores = []
    for more in (["--batch-size", "2"], ["--override", "window=48"], ["--override", "window=16", "--override", "window_stride=8"]):
        out = ["--out", str(tmp_path / "out"), "--examples", "0"]
        assert main(["evaluate", checkpoint, str(tmp_path / "shards"), *CPU, *out, "--override", "dense_attention=naclip", *more]) == 0
        scores.append(json.loads((tmp_path / "out" / "scores.json").read_text()))
    assert [score["images"] for score in scores] == [4, 4, 4] and scores[0]["class_names"] == ["red", "green", "blue"]
    assert scores[0]["aAcc"] == pytest.approx(scores[1]["aAcc"], abs=2e-3)
    assert scores[2]["post_process"]["window"] == 16 and scores[2]["mIoU"] != scores[0]["mIoU"]
