"""`ofaseg evaluate --robustness` with a model that knows the colour of every word."""

import json
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import ofaseg.checkpoints
from ofaseg.cli import main
from ofaseg.commands import evaluate_robustness
from ofaseg.structures import DenseOutput
from tests.toy import CLASS_COLOURS, NAMES, PROMPT_WORDS, write_toy_shards, write_words
from tests.toy_simseg import write_simseg
from user_tasks.seq2seq_segmentation import Seq2SeqSegmentationConfig, Seq2SeqSegmentationTask

pytestmark = pytest.mark.usefixtures("one_thread")

RED, GREEN, BLUE = (tuple(int(c) for c in colour) for colour in CLASS_COLOURS)
WORDS = {"red": RED, "green": GREEN, "blue": BLUE, "crimson": RED, "lime": GREEN, "navy": RED}  # it has learnt navy wrongly
WORDS |= {"rose": (215, 40, 40), "ruby": (185, 40, 40), "leaf": GREEN, "grey": (120, 120, 120), "scarlet": RED, "white": (255, 255, 255)}


class WordModel(nn.Module):
    """Class logits = negative distance of a patch's colour to the colour of each class's word; a distractor "scarlet" beats red."""

    grid_stride = 4

    def __init__(self, task, sorts: bool):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.table = {task.encode(word)[0]: colour for word, colour in WORDS.items()}
        self.scarlet, self.sorts = task.encode("scarlet")[0], sorts
        self.set_classes(task.class_token_ids)

    def set_classes(self, ids):
        self.ids = [name[0] for name in (sorted(ids) if self.sorts else ids)]

    def class_embeddings(self):
        return torch.tensor([self.table[i] for i in self.ids], dtype=torch.float32)

    @torch.no_grad()
    def predict(self, src_tokens, patch_images):
        patches = nn.functional.avg_pool2d(patch_images.float(), 4, ceil_mode=True, count_include_pad=False)
        distance = (patches[:, None] - self.class_embeddings()[None, :, :, None, None]).square().mean(2)
        bonus = torch.tensor([float(i == self.scarlet) for i in self.ids])[:, None, None]
        return DenseOutput(bonus - distance / 1000, patches)


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """Shards; `load_model` gives the model above. With "broken" in the checkpoint's name it sorts its classes."""
    root = tmp_path / "shards"
    write_toy_shards(root, "val", 5, sizes=((32, 48), (40, 32)))
    words = write_words(tmp_path / "words", [*PROMPT_WORDS, *WORDS])

    def load_model(path, class_names=None, device="cpu", overrides=None):
        cfg = Seq2SeqSegmentationConfig(data=str(root), bpe_dir=words, patch_image_size=32, code_dict_size=0, num_bins=4)
        cfg.seed = 1
        for key, value in (overrides or {}).items():
            setattr(cfg, key, value)
        task = Seq2SeqSegmentationTask.setup_task(cfg)
        task.reads_class_order = "text" in str(path)
        return WordModel(task, sorts="broken" in str(path)), task

    monkeypatch.setattr(ofaseg.checkpoints, "load_model", load_model, raising=False)
    monkeypatch.setattr(evaluate_robustness, "DISTRACTORS", (1, 2))
    (tmp_path / "synonyms.json").write_text(json.dumps({"red": ["Red", "crimson"], "blue": ["navy"]}))
    (tmp_path / "subclasses.txt").write_text("0:red,rose,ruby\n7:green,lime,leaf\n")
    return root


def arguments(shards, out, *more, checkpoint="model.pt", distractors="grey,white"):
    files = ["--synonyms", str(shards.parent / "synonyms.json"), "--subclasses", str(shards.parent / "subclasses.txt")]
    return ["evaluate", checkpoint, str(shards), "--device", "cpu", "--out", str(out), "--distractors", distractors, *files, *more]


def run(shards, out, *more, **options):
    status = main([*arguments(shards, out, *more, **options), *([] if "--robustness" in more else ["--robustness"])])
    path = out / "robustness.json"
    data = json.loads(path.read_text()) if path.exists() else None
    return status, data, {entry["naming"]: entry for entry in data["namings"]} if data else None


def test_one_table_of_all_namings(colours, tmp_path, capsys):
    status, data, rows = run(colours, tmp_path / "out", "--batch-size", "3")
    assert status == 0
    titles = ["official names", "plain names", "synonyms", "subclasses", "1 distractors", "2 distractors", "another class order"]
    assert list(rows) == titles and data["images"] == 5
    assert main(["evaluate", "model.pt", str(colours), "--device", "cpu", "--out", str(tmp_path / "plain")]) == 0
    alone = json.loads((tmp_path / "plain" / "scores.json").read_text())
    assert rows["official names"]["scores"]["IoU_per_class"] == alone["IoU_per_class"]
    assert rows["official names"]["scores"]["constant"] == alone["constant"]
    scores = rows["synonyms"]["scores"]  # navy paints red, which crimson ties with and wins
    assert rows["synonyms"]["names"] == ["crimson", "green", "navy"] and scores["IoU_per_class"][2] == 0
    assert rows["synonyms"]["difference"]["mIoU"] == pytest.approx(scores["mIoU"] - alone["mIoU"])
    assert rows["subclasses"]["names"] == ["rose", "ruby", "lime", "leaf", "blue"] and rows["subclasses"]["scores"]["mIoU"] > 0.7
    assert rows["subclasses"]["classes"] == [0, 0, 1, 1, 2]
    assert data["class_order"] == {"pixels": data["class_order"]["pixels"], "differing": 0, "share": 0.0, "passed": True}
    assert data["class_order"]["pixels"] == 3 * 32 * 48 + 2 * 40 * 32
    assert rows["another class order"]["classes"] != [0, 1, 2]
    printed = capsys.readouterr().out
    assert "| subclasses | 5 | 2 |" in printed and f"({100 * rows['synonyms']['difference']['mIoU']:+.1f})" in printed
    assert (tmp_path / "out" / "robustness.md").read_text() in printed


def test_distractors_are_misses_and_never_hits(colours, tmp_path):
    rows = run(colours, tmp_path, "--robustness", "distractors", distractors="scarlet,white")[2]
    assert list(rows) == ["official names", "1 distractors", "2 distractors"]
    before, after = rows["official names"]["scores"], rows["2 distractors"]["scores"]
    assert rows["2 distractors"]["classes"] == [0, 1, 2, 3, 3] and after["acc_per_class"][0] == 0 and after["IoU_per_class"][0] == 0
    assert after["acc_per_class"][1:] == pytest.approx(before["acc_per_class"][1:], abs=0.02) and after["classes_scored"] == 3
    assert after["no_class_share"] == pytest.approx(before["label_share_per_class"][0], abs=0.05)
    assert after["pixels"] == before["pixels"] and after["label_share_per_class"] == before["label_share_per_class"]


def test_a_model_that_loses_the_order_is_found(colours, tmp_path, capsys):
    status, data, _ = run(colours, tmp_path, "--robustness", "order", checkpoint="broken.pt")
    assert status == 1 and data["class_order"]["passed"] is False and data["class_order"]["share"] > 0.3
    assert "FAILED" in capsys.readouterr().out
    status, data, _ = run(colours, tmp_path, "--robustness", "order", checkpoint="broken-text.pt")
    assert status == 0 and data["class_order"]["passed"] is None and data["class_order"]["share"] > 0.3


def test_names_that_do_not_fit_are_a_row(colours, tmp_path, capsys):
    status, _, rows = run(colours, tmp_path, "--override", "max_source_positions=16")
    assert status == 0 and "scores" in rows["1 distractors"]
    assert "names take 5 tokens, the model has positions for 4" in rows["2 distractors"]["does_not_fit"]
    printed = capsys.readouterr().out
    assert "| 2 distractors | 5 | 0 | does not fit |" in printed and "- 2 distractors: does not fit: the 5 class names" in printed


@pytest.mark.parametrize(
    "more, message",
    [
        (["--robustness", "synonyms", "--synonyms", ""], "needs --synonyms FILE"),
        (["--robustness", "--synonyms", "nowhere.json"], "nowhere.json"),
        (["--robustness", "--distractors", "grey"], "1 are left beside the class names"),
    ],
)
def test_user_errors_are_one_line(colours, tmp_path, capsys, more, message):
    assert main(arguments(colours, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_simseg(tmp_path, monkeypatch):
    """The real model and task: official names score as in `evaluate`, and the order of the names changes nothing."""
    monkeypatch.setenv("OFASEG_CACHE", "")
    checkpoint = write_simseg(tmp_path / "model")
    root = tmp_path / "shards"
    write_toy_shards(root, "val", 2, sizes=((32, 48),))
    (tmp_path / "subclasses.json").write_text(json.dumps({"red": ["red car", "the red"], "green": ["grass"]}))
    common = [checkpoint, str(root), "--device", "cpu", "--override", "zero_shot=dense"]
    argv = ["evaluate", *common, "--robustness", "--subclasses", str(tmp_path / "subclasses.json"), "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    assert main(["evaluate", *common, "--out", str(tmp_path / "plain")]) == 0
    data = json.loads((tmp_path / "out" / "robustness.json").read_text())
    rows = {entry["naming"]: entry for entry in data["namings"]}
    alone = json.loads((tmp_path / "plain" / "scores.json").read_text())
    assert rows["official names"]["scores"]["IoU_per_class"] == alone["IoU_per_class"] and "class vectors as trained" not in rows
    assert rows["subclasses"]["names"] == ["red car", "the red", "grass", "blue"]
    assert data["class_order"]["passed"] and rows["another class order"]["scores"]["mIoU"] == pytest.approx(alone["mIoU"], abs=1e-3)
    assert len(rows["200 distractors"]["names"]) == 203


def test_trained_class_vectors_have_a_row_of_their_own(colours, tmp_path, monkeypatch):
    load_model = ofaseg.checkpoints.load_model

    def trained(*args, **kwargs):
        model, task = load_model(*args, **kwargs)
        model.ids[0] = task.encode("grey")[0]
        return model, task

    monkeypatch.setattr(ofaseg.checkpoints, "load_model", trained)
    rows = run(colours, tmp_path, "--robustness", "plain")[2]
    assert list(rows) == ["official names", "class vectors as trained", "plain names"]
    assert rows["official names"]["scores"]["mIoU"] == rows["plain names"]["scores"]["mIoU"] > 0.9
    assert rows["class vectors as trained"]["scores"]["mIoU"] < 0.9


def _rank(rank, argv, port):
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    assert main(argv) == 0


def test_two_processes_equal_one(colours, tmp_path):
    alone = run(colours, tmp_path / "one")[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = arguments(colours, tmp_path / "two", "--robustness")
    mp.start_processes(_rank, args=(argv, port), nprocs=2, start_method="fork")
    assert json.loads((tmp_path / "two" / "robustness.json").read_text()) == alone
    assert len(NAMES) == len(alone["namings"][0]["names"])
