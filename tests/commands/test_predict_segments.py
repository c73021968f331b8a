"""`ofaseg predict --tasks`: segments and objects as files that COCO's tools read."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("open_clip")

from ofaseg.cli import main  # noqa: E402
from ofaseg.data import codec  # noqa: E402
from ofaseg.utils.run_lengths import mask_of_text  # noqa: E402
from tests.commands.segment_model import LOOSE, export_nano  # noqa: E402
from tests.toy_freeseg import vocabulary_of, write_segment_shards  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    vocabulary = write_segment_shards(root / "shards", "val", 1, vocabulary=vocabulary_of())
    return export_nano(root, root / "shards", vocabulary)


def predict(model, folder, *more):
    photo = folder / "street.png"
    Image.effect_noise((70, 50), 80).convert("RGB").save(photo)
    command = ["predict", str(photo), "--checkpoint", str(model), "--device", "cpu", "--out", str(folder / "out"), *more]
    return main([*command, *LOOSE]), folder / "out"


def test_panoptic_files(model, tmp_path):
    """The map holds just the segments that are listed, with their areas and boxes."""
    status, out = predict(model, tmp_path, "--tasks", "panoptic")
    names = ("street_panoptic.json", "street_panoptic.png", "street_panoptic_overlay.png")
    assert status == 0 and sorted(path.name for path in out.iterdir()) == sorted(names)
    about = json.loads((out / names[0]).read_text())
    ids = codec.decode_segment_map((out / names[1]).read_bytes())
    assert ids.shape == (50, 70) == (about["height"], about["width"]) and about["file_name"] == names[1]
    assert {entry["id"] for entry in about["segments_info"]} == set(np.unique(ids).tolist()) - {0} and len(about["segments_info"]) > 1
    isthing = {category["id"]: category["isthing"] for category in about["categories"]}
    assert isthing == {1: 1, 2: 1, 3: 0}
    for entry in about["segments_info"]:
        ys, xs = np.nonzero(ids == entry["id"])
        assert entry["area"] == len(ys) and entry["isthing"] == isthing[entry["category_id"]] and 0 <= entry["score"] <= 1
        assert entry["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]


def test_instance_files(model, tmp_path):
    status, out = predict(model, tmp_path, "--tasks", "instance,semantic")
    expected = ("street.json", "street_index.png", "street_instances.json", "street_instances_overlay.png", "street_overlay.png")
    assert status == 0 and sorted(path.name for path in out.iterdir()) == sorted(expected)
    about = json.loads((out / "street_instances.json").read_text())
    scores = [entry["score"] for entry in about["annotations"]]
    assert len(scores) > 1 and scores == sorted(scores, reverse=True)
    for entry in about["annotations"]:
        mask = mask_of_text(entry["segmentation"]["counts"], *entry["segmentation"]["size"])
        assert (
            mask.shape == (50, 70)
            and mask.sum() == entry["area"]
            and entry["category"] == ["red", "green", "blue"][entry["category_id"] - 1]
        )
    with Image.open(out / "street_instances_overlay.png") as picture:
        assert picture.width >= 320 and picture.height > 320  # enlarged, with a legend


def test_things_of_free_words(model, tmp_path):
    """Words are things unless the checkpoint knows them as stuff, or others are named; "blue" is stuff of its training."""
    marks = []
    for number, more in enumerate(((), ("--things", "sea"), ("--things", "lake"))):
        (tmp_path / str(number)).mkdir()
        status, out = predict(model, tmp_path / str(number), "--tasks", "panoptic", "--class-names", "cat,Blue,sea", *more)
        found = json.loads((out / "street_panoptic.json").read_text())["categories"] if status == 0 else []
        marks.append([category["isthing"] for category in found])
    assert marks[:2] == [[1, 0, 1], [0, 0, 1]] and marks[2] == []


def test_errors(model, tmp_path, capsys):
    assert predict(model, tmp_path, "--things", "lake")[0] == 2
    assert "'lake' is no class; name some of red, green, blue" in capsys.readouterr().err
    assert predict(model, tmp_path, "--tasks", "boxes")[0] == 2
    assert "give one or more of semantic,instance,panoptic" in capsys.readouterr().err
    assert predict(model, tmp_path, "--maps", "a cat", "--tasks", "panoptic")[0] == 2
    assert "leave out --tasks" in capsys.readouterr().err
