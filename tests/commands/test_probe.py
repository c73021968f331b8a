"""`ofaseg probe`: a frozen tower of random weights tells colours apart; features by hand; images that cannot be used."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ofaseg.checkpoints import load_dual_encoder
from ofaseg.cli import main
from ofaseg.commands.probe import encode
from tests.toy import CLASS_COLOURS, NAMES
from tests.toy_simseg import write_simseg


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_simseg(tmp_path_factory.mktemp("simseg"))


@pytest.fixture
def folder(tmp_path):
    """Colours with noise: train/{blue,green,red} of 8 images each, val of 4, in several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in zip(NAMES, CLASS_COLOURS.astype(int)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = (colour + rng.integers(-40, 40, (40 + k, 50, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{k}.png")
    return tmp_path / "data"


def probe(checkpoint, folder, out, *arguments):
    status = main(["probe", checkpoint, str(folder), "--device", "cpu", "--epochs", "20", "--out", str(out), *arguments])
    return status, json.loads((out / "probe.json").read_text()) if status == 0 else None


@pytest.mark.parametrize("features", ["loda", "mean", "cls"])
def test_colours_are_told_apart(checkpoint, folder, tmp_path, capsys, features):
    status, scores = probe(checkpoint, folder, tmp_path / "out", "--features", features)
    assert status == 0 and scores["top1"] == scores["top5"] == 1.0
    assert (scores["train_images"], scores["images"], scores["classes"], scores["size"], scores["lr"]) == (24, 12, 3, 32, 6.4)
    assert (tmp_path / "out" / "probe.md").read_text().splitlines()[-1] in capsys.readouterr().out


def test_labels_that_follow_nothing_are_not_learned(checkpoint, folder, tmp_path):
    """The same images under shuffled class names in validation: the score can fall."""
    (folder / "val" / "red").rename(folder / "val" / "x")
    (folder / "val" / "blue").rename(folder / "val" / "red")
    (folder / "val" / "x").rename(folder / "val" / "blue")
    assert probe(checkpoint, folder, tmp_path / "out")[1]["top1"] == pytest.approx(1 / 3)


def test_images_that_cannot_be_used_are_left_out(checkpoint, folder, tmp_path, caplog):
    (folder / "train" / "red" / "0.png").write_bytes(b"broken")
    (folder / "val" / "violet").mkdir()
    (folder / "val" / "red" / "0.png").rename(folder / "val" / "violet" / "0.png")
    _, scores = probe(checkpoint, folder, tmp_path / "out", "--optimizer", "sgd")
    assert (scores["train_images"], scores["images"], len(scores["bad_rows"]), scores["lr"]) == (23, 11, 2, 0.1)
    assert "the class 'violet' is not among those of the training split" in caplog.text and "red/0.png" in caplog.text


@pytest.mark.parametrize("features", ["loda", "mean", "cls"])
def test_features_by_hand(checkpoint, features):
    model, task = load_dual_encoder(checkpoint)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    args = argparse.Namespace(encode_batch_size=2, num_workers=0, features=features)
    found, labels = encode(model, task, [(image, 4), "a bad one"], args, torch.device("cpu"), [])
    with torch.no_grad():
        tokens = model.image_encoder(model.normalised(image[None]))[0]
    projected = tokens[1:] @ model.image_projection.weight.T
    expected = {"cls": tokens[0], "mean": tokens[1:].mean(0), "loda": projected.sort(0, descending=True).values[:5].mean(0)}[features]
    assert labels.tolist() == [4]
    torch.testing.assert_close(found[0], expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arguments, message", [(("--size", "30"), "multiple of the patch, 8"), (("--lr", "0"), "--lr is above 0")])
def test_bad_values_are_named(checkpoint, folder, tmp_path, capsys, arguments, message):
    assert probe(checkpoint, folder, tmp_path, *arguments)[0] == 2
    assert message in capsys.readouterr().err
