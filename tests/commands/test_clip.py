"""The commands with a CLIP file of nano size, as a user would bring it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ofaseg.cli import main
from ofaseg.data import codec
from ofaseg.data.shards import ShardWriter
from ofaseg.vocabulary import ClassVocabulary
from tests.checkpoints.clip_files import nano_state, openai_state
from tests.toy import write_toy_shards

FINER = {"red": ["crimson rose", "old brick", "fire engine"], "green": ["wet grass", "frog"], "blue": ["summer sky"]}
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


def test_maps_of_phrases(checkpoint, tmp_path):
    Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / "x.png")
    command = ["predict", str(tmp_path / "x.png"), "--checkpoint", checkpoint, "--out", str(tmp_path / "out"), *CPU[:2]]
    assert main([*command, "--maps", "a red car", "--map-size", "32"]) == 0
    with np.load(tmp_path / "out" / "x_maps.npz") as stored:
        assert stored["cosines"].shape == (1, 4, 5) and np.isfinite(stored["cosines"]).all() and stored["scores"].shape == (1,)


def test_retrieval(checkpoint, tmp_path):
    with ShardWriter(str(tmp_path), "val", ClassVocabulary(("x",), source="toy"), ["image", "captions", "id"], format="parquet") as writer:
        for k in range(3):
            photo = np.full((40, 50, 3), 70 * k, np.uint8)
            writer.write({"id": str(k), "image": codec.encode_image(photo, "png"), "captions": ["a photo", f"photo number {k}"]})
    assert main(["retrieval", checkpoint, str(tmp_path), "--out", str(tmp_path / "out"), *CPU]) == 0
    scores = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert scores["images"] == 3 and scores["captions"] == 6 and scores["T2I-R@5"] == 1


def test_probe(checkpoint, tmp_path, capsys):
    """On patch tokens; SimSeg's other features are refused by name."""
    for split in ("train", "val"):
        for name, value in (("dark", 20), ("light", 220)):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(4):
                Image.new("RGB", (40, 36), (value + k,) * 3).save(tmp_path / split / name / f"{k}.png")
    command = ["probe", checkpoint, str(tmp_path), "--epochs", "20", "--out", str(tmp_path / "out"), *CPU]
    assert main(command) == 2
    assert "--features loda is of SimSeg alone" in capsys.readouterr().err
    assert main([*command, "--features", "mean"]) == 0
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["classes"] == 2


def test_subclasses_make_the_maps(checkpoint, tmp_path):
    """With each class as its only subclass nothing changes; with finer names something does, and the rule matters."""
    write_toy_shards(tmp_path / "shards", "val", 3)
    predictions = []
    for k, (names, rule) in enumerate(
        [({}, ""), (dict(red=["red"], green=["green"], blue=["blue"]), "softmax"), (FINER, "softmax"), (FINER, "max")]
    ):
        (tmp_path / "names.json").write_text(json.dumps(names))
        more = ["--subclasses", str(tmp_path / "names.json"), "--fusion", rule] if names else []
        assert main(["evaluate", checkpoint, str(tmp_path / "shards"), *CPU, "--out", str(tmp_path / str(k)), *more]) == 0
        predictions.append(
            np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / str(k)).glob("examples/*/prediction.png"))])
        )
    assert np.array_equal(predictions[0], predictions[1])
    assert not np.array_equal(predictions[0], predictions[2]) and not np.array_equal(predictions[2], predictions[3])
