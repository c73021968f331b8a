"""`ofaseg predict --maps`: cosines of free phrases against the model computed by hand, their pictures, and refused uses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ofaseg.checkpoints import load_dual_encoder
from ofaseg.cli import main
from ofaseg.commands.predict import photos_behind
from ofaseg.commands.predict_maps import file_names
from tests.conftest import ROOT
from tests.toy_simseg import write_simseg

PHRASES = ("a red car", "grass")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_simseg(tmp_path_factory.mktemp("simseg"))


@pytest.fixture
def photo(tmp_path):
    """Noise, 40 x 75 pixels (height, width)."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 75, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def maps(photo, checkpoint, out, *arguments):
    return main(["predict", str(photo), "--checkpoint", str(checkpoint), "--device", "cpu", "--out", str(out), *arguments])


def by_hand(checkpoint, photo, size, sentences):
    """(cosines (P, h, w), scores (P,)) for a photo at `size` (height, width); one list of sentences per phrase."""
    model, task = load_dual_encoder(checkpoint)
    pixels = np.asarray(Image.open(photo).resize(size[::-1], Image.Resampling.BILINEAR))
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        vectors = [model.embed_text(*task.text_tokenizer(list(texts), 12)).mean(0) for texts in sentences]
        phrases = F.normalize(torch.stack(vectors), dim=-1)
        cosines = F.normalize(model.patches(image)[1][0], dim=-1) @ phrases.T
        scores = model.embed_image(image)[0] @ phrases.T
    return cosines.T.unflatten(1, (size[0] // 8, size[1] // 8)).numpy(), scores.numpy()


def assert_stored(path, cosines, scores, phrases=PHRASES):
    with np.load(path) as stored:
        assert stored["phrases"].tolist() == list(phrases) and stored["cosines"].dtype == np.float32
        np.testing.assert_allclose(stored["cosines"], cosines, atol=2e-6)
        np.testing.assert_allclose(stored["scores"], scores, atol=2e-6)


def test_phrases_are_read_as_written_in_the_square(checkpoint, photo, tmp_path, capsys):
    assert maps(photo, checkpoint, tmp_path / "out", "--maps", *PHRASES) == 0
    assert "1 of 1 photos drawn" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["photo_map_a_red_car.png", "photo_map_grass.png", "photo_maps.npz"]
    assert_stored(tmp_path / "out" / "photo_maps.npz", *by_hand(checkpoint, photo, (32, 32), [[phrase] for phrase in PHRASES]))


def test_another_size_keeps_the_shape_in_whole_patches(checkpoint, photo, tmp_path):
    """Short side 52 is 6.5 patches of 8 pixels, which rounds to 6 (even), the long side 97.5 pixels to 12."""
    assert maps(photo, checkpoint, tmp_path / "out", "--map-size", "52", "--maps", *PHRASES) == 0
    assert_stored(tmp_path / "out" / "photo_maps.npz", *by_hand(checkpoint, photo, (48, 96), [[phrase] for phrase in PHRASES]))


def test_templates_are_used_when_asked_for(checkpoint, photo, tmp_path):
    (tmp_path / "templates.txt").write_text("{}\na photo of the {}\n")
    override = ("--override", f"templates={tmp_path / 'templates.txt'}")
    assert maps(photo, checkpoint, tmp_path / "out", *override, "--maps", *PHRASES) == 0
    sentences = [[phrase, f"a photo of the {phrase}"] for phrase in PHRASES]
    assert_stored(tmp_path / "out" / "photo_maps.npz", *by_hand(checkpoint, photo, (32, 32), sentences))


def test_a_bad_photo_costs_only_itself(checkpoint, photo, tmp_path, caplog):
    (photo.parent / "broken.png").write_bytes(b"no image")
    assert maps(photo.parent, checkpoint, tmp_path / "out", "--maps", "grass") == 0
    assert "broken.png" in caplog.text and (tmp_path / "out" / "photo_maps.npz").is_file()


def test_a_model_without_text_tower_is_named(photo, tmp_path, capsys):
    weights = ROOT / "ofaseg" / "assets" / "shapes" / "segofa_nano.safetensors"
    assert maps(photo, weights, tmp_path / "out", "--maps", "grass") == 2
    assert "segofa_nano.safetensors: not a dual encoder" in capsys.readouterr().err


def test_photos_may_stand_behind_the_phrases(checkpoint, photo, tmp_path, capsys):
    common = ["--checkpoint", str(checkpoint), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["predict", *common, "--maps", *PHRASES, str(photo)]) == 0
    with np.load(tmp_path / "out" / "photo_maps.npz") as stored:
        assert stored["phrases"].tolist() == list(PHRASES)
    assert photos_behind(["a", "http://x.org/b.jpg", str(photo)]) == (["a"], ["http://x.org/b.jpg", str(photo)])
    refused = {"no photo given ('grass' is no file)": ["--maps", *PHRASES], "no photo given;": []}
    refused[f"--maps needs at least one phrase, '{photo}' is a file"] = ["--maps", str(photo)]
    for message, arguments in refused.items():
        assert main(["predict", *common, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--maps", "car", " "), "none of them empty"),
        (("--map-size", "32"), "at least one phrase"),
        (("--maps", "car", "--map-size", "-1"), "--map-size -1"),
        (("--maps", "car", "--class-names", "a, b", "--flip"), "leave out --class-names, --flip"),
    ],
)
def test_options_that_have_no_meaning(checkpoint, photo, tmp_path, capsys, arguments, message):
    assert maps(photo, checkpoint, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_file_names_are_short_and_apart():
    assert file_names(["a red/car", "A Red:car", "x" * 300, "é" * 90, "!"]) == ["a_red_car", "A_Red_car-2", "x" * 100, "é" * 50, "image"]
