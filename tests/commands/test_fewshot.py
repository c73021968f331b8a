"""`ofaseg fewshot` on toy shards, and the mean over folds."""

import json

import pytest
import torch

from ofaseg.cli import main
from ofaseg.commands.fewshot import exchanged_classes
from tests.data.test_segmentation_dataset import break_row
from tests.models.one_layer import one_layer
from tests.toy import NAMES, write_toy_shards
from tests.toy_fusioner import make_model, make_task
from tools.average_folds import average

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(checkpoint, shards): random weights, as fairseq-train would leave them."""
    root = tmp_path_factory.mktemp("fewshot")
    vocabulary = write_toy_shards(root / "shards", "val", 6, sizes=((32, 48), (40, 40)))
    with one_layer():
        task = make_task(root, NAMES, novel_classes="blue,green")
        torch.manual_seed(1)
        model = make_model(task)
        options = vars(model.config) | {"_name": "fusioner_nano"}
        names = ("novel_classes", "text_tokenizer", "text_embeddings", "patch_image_size")
        recorded = {"_name": "fusion_segmentation", "data": "", **{name: getattr(task.cfg, name) for name in names}}
        state = {
            "cfg": {"model": options, "task": recorded},
            "model": model.state_dict(),
            "task_state": {"vocabulary": vocabulary.to_json()},
        }
        torch.save(state, root / "model.pt")
        yield str(root / "model.pt"), str(root / "shards"), root


def run(world, out, *more) -> dict:
    with one_layer():
        assert main(["fewshot", *world[:2], "--device", "cpu", "--out", str(out), *more]) == 0
    return json.loads((out / "fewshot.json").read_text())


def test_scores_beside_what_has_to_be_beaten(world, tmp_path, capsys):
    scores = run(world, tmp_path, "--exchange-names", "1")
    assert scores["class_names"] == ["green", "blue"] and scores["pairs"] == sum(scores["pairs_per_class"]) > 6
    assert set(scores["beside"]) == {"names exchanged", "everything foreground"}
    everything = scores["beside"]["everything foreground"]
    assert everything["bg_IoU"] == 0 and 0 < everything["mIoU"] < 1 and everything["pairs"] == scores["pairs"]
    text = capsys.readouterr().out
    assert "| names exchanged |" in text and "| blue |" in text
    assert (tmp_path / "fewshot.md").read_text().startswith("| | mIoU | FB-IoU | pairs |")


def test_any_batch_size_and_a_limit(world, tmp_path):
    one, many = run(world, tmp_path / "a"), run(world, tmp_path / "b", "--batch-size", "5", "--num-workers", "1")
    assert one["IoU_per_class"] == pytest.approx(many["IoU_per_class"], abs=1e-3) and one["pairs"] == many["pairs"]
    assert run(world, tmp_path / "c", "--limit", "3")["pairs"] == 3


def test_base_classes_and_original_resolution(world, tmp_path):
    assert run(world, tmp_path / "a", "--base")["class_names"] == ["red"]
    native = run(world, tmp_path / "b", "--override", "test_with_org_resolution=true", "--override", "protocol=hsnet")
    assert native["protocol"] == "hsnet" and native["pairs"] > 0


def test_a_bad_row_costs_only_its_pairs(world, tmp_path):
    write_toy_shards(tmp_path / "shards", "val", 6)
    whole = run((world[0], str(tmp_path / "shards")), tmp_path / "a")
    break_row(tmp_path / "shards", "val", 2)
    left = run((world[0], str(tmp_path / "shards")), tmp_path / "b")
    assert 0 < left["pairs"] < whole["pairs"]


def test_user_errors_are_one_line(world, tmp_path, capsys):
    with one_layer():
        assert main(["fewshot", *world[:2], "--device", "cpu", "--override", "novel_classes=cyan"]) == 2
        assert "no class 'cyan' to hold out" in capsys.readouterr().err
        assert main(["fewshot", *world[:2], "--device", "cpu", "--override", "benchmark=pascal5i"]) == 2
        assert "--novel-classes beside --benchmark pascal5i" in capsys.readouterr().err
        for overrides, message in (
            (["benchmark=pascal5i", "novel_classes="], "not in the vocabulary"),
            (["scales=0.5,1"], "pairs are tested at one scale"),
            (["resize=short_side"], "pairs are tested as squares"),
            (["window=32"], "add test_with_org_resolution"),
        ):
            flags = [part for override in overrides for part in ("--override", override)]
            assert main(["fewshot", *world[:2], "--device", "cpu", *flags]) == 2
            assert message in capsys.readouterr().err


def test_the_same_checkpoint_in_evaluate_and_predict(world, tmp_path):
    with one_layer():
        assert main(["evaluate", *world[:2], "--device", "cpu", "--out", str(tmp_path / "scores"), "--examples", "0"]) == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["images"] == 6 and scores["class_names"] == list(NAMES)


def test_no_class_keeps_its_name():
    for seed in range(5):
        table = exchanged_classes([4, 7, 9, 2], seed)
        assert sorted(table) == sorted(table.values()) == [2, 4, 7, 9] and all(a != b for a, b in table.items())
    with pytest.raises(ValueError, match="two classes or more, not 1"):
        exchanged_classes([3], 1)


def test_mean_over_folds(world, tmp_path):
    first = run(world, tmp_path / "a", "--override", "novel_classes=blue")
    second = run(world, tmp_path / "b", "--override", "novel_classes=red")
    files = [str(tmp_path / folder / "fewshot.json") for folder in ("a", "b")]
    mean = average(files)
    assert mean["mIoU"] == pytest.approx((first["mIoU"] + second["mIoU"]) / 2) and mean["class_names"] == ["blue", "red"]
    with pytest.raises(ValueError, match="give each fold once"):
        average([files[0]] * 2)
    with pytest.raises(ValueError, match="cannot be read"):
        average([str(tmp_path / "gone.json")])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no scores of `ofaseg fewshot`"):
        average([str(tmp_path / "other.json")])
