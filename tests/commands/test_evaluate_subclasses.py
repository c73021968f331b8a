"""`--subclasses` of `ofaseg evaluate` and `ofaseg predict`, with models of random weights."""

import json

import numpy as np
import pytest
from PIL import Image

from ofaseg.cli import main
from tests.models.one_layer import one_layer
from tests.toy import NAMES, write_toy_shards
from tests.toy_simseg import write_simseg

pytestmark = pytest.mark.usefixtures("one_thread")

ITSELF = {name: [name] for name in NAMES}
FINER = {"red": ["red car", "red cars"], "green": ["green grass"], "blue": ["blue", "a blue photo", "blue car"]}


@pytest.fixture(scope="module")
def simseg(tmp_path_factory):
    """A checkpoint and four labelled photos."""
    root = tmp_path_factory.mktemp("subclasses")
    write_toy_shards(root / "shards", "val", 4)
    with one_layer():
        yield write_simseg(root / "model"), str(root / "shards")


def maps(simseg, out, *more) -> np.ndarray:
    """Label maps of all photos, as the examples keep them."""
    checkpoint, shards = simseg
    with one_layer():
        assert main(["evaluate", checkpoint, shards, "--device", "cpu", "--examples", "4", "--out", str(out), *more]) == 0
    return np.stack([np.asarray(Image.open(out / "examples" / f"val{k}" / "prediction.png")) for k in range(4)])


def write(folder, content) -> str:
    (folder / "names.json").write_text(json.dumps(content))
    return str(folder / "names.json")


@pytest.mark.parametrize("zero_shot", ["dense", "coco_object"])
def test_lists_of_the_class_itself_change_nothing(simseg, tmp_path, zero_shot):
    options = ("--override", f"zero_shot={zero_shot}", "--override", "refine=none")
    plain = maps(simseg, tmp_path / "plain", *options)
    assert np.array_equal(maps(simseg, tmp_path / "same", *options, "--subclasses", write(tmp_path, ITSELF)), plain)
    assert not np.array_equal(maps(simseg, tmp_path / "finer", *options, "--subclasses", write(tmp_path, FINER)), plain)


def test_the_order_of_the_file_means_nothing(simseg, tmp_path):
    first = maps(simseg, tmp_path / "a", "--subclasses", write(tmp_path, FINER))
    turned = {name: FINER[name] for name in ("blue", "red", "green")}
    assert np.array_equal(maps(simseg, tmp_path / "b", "--subclasses", write(tmp_path, turned)), first)
    mixed = {"red": FINER["blue"], "blue": FINER["red"], "green": FINER["green"]}
    assert not np.array_equal(maps(simseg, tmp_path / "c", "--subclasses", write(tmp_path, mixed)), first)


def test_fusion_rules_are_chosen_by_name(simseg, tmp_path):
    names = write(tmp_path, FINER)
    found = {rule: maps(simseg, tmp_path / rule, "--subclasses", names, "--fusion", rule) for rule in ("softmax", "max", "superclass_mean")}
    assert not np.array_equal(found["softmax"], found["max"])
    assert not np.array_equal(found["softmax"], found["superclass_mean"])


def test_predict_takes_the_same_option(simseg, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(photo)
    command = ["predict", str(photo), "--checkpoint", simseg[0], "--class-names", ",".join(NAMES), "--device", "cpu"]

    def predicted(out, *more):
        with one_layer():
            assert main([*command, "--out", str(tmp_path / out), *more]) == 0
        return np.asarray(Image.open(tmp_path / out / "photo_index.png"))

    plain = predicted("plain")
    assert np.array_equal(predicted("same", "--subclasses", write(tmp_path, ITSELF)), plain)
    assert not np.array_equal(predicted("finer", "--subclasses", write(tmp_path, FINER)), plain)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--fusion", "max"], "give them with --subclasses FILE"),
        (["--subclasses", "absent.json"], "absent.json: no such label set"),
        (["--subclasses", "{set}", "--fusion", "median"], "median"),
        (["--robustness", "plain", "--subclasses", "{set}", "--fusion", "max"], "leave --fusion out"),
        (["--subclasses", "{set}", "--class-names", "red,green,cyan", "--rename-classes"], "has no entry for 'cyan'"),
    ],
)
def test_user_errors_are_one_line(simseg, tmp_path, capsys, arguments, message):
    names = write(tmp_path, FINER)
    with one_layer():
        status = main(["evaluate", *simseg, "--device", "cpu", *(text.format(set=names) for text in arguments)])
    error = capsys.readouterr().err
    assert status == 2 and message in error and "Traceback" not in error


def test_robustness_reads_them_as_names_of_their_own(simseg, tmp_path, capsys):
    with one_layer():
        assert main(["evaluate", *simseg, "--device", "cpu", "--robustness", "subclasses", "--subclasses", write(tmp_path, FINER)]) == 0
    assert "subclasses" in capsys.readouterr().out
