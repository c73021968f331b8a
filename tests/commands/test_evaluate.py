"""`ofaseg evaluate` on toy shards: files, bad rows, batch sizes, processes."""

import json
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

from ofaseg.cli import main
from ofaseg.commands.evaluate import default_name, safe_name, spread


def evaluate(shards, out, *more):
    status = main(["evaluate", "model.pt", str(shards), "--device", "cpu", "--out", str(out), *more])
    return status, json.loads((out / "scores.json").read_text()) if (out / "scores.json").exists() else None


def test_scores_table_and_examples(toy, tmp_path, capsys):
    status, scores = evaluate(toy, tmp_path / "out", "--examples", "3", "--name", "mine")
    assert status == 0 and scores["images"] == 7 and scores["mIoU"] > 0.7 and scores["bad_rows"] == []
    assert scores["class_names"] == ["red", "green", "blue"] and scores["post_process"]["resnet_iters"] == 0
    printed = capsys.readouterr().out
    assert "| mine |" in printed and "best constant prediction" in printed
    assert "| mine |" in (tmp_path / "out" / "scores.md").read_text()
    assert sorted(p.name for p in (tmp_path / "out" / "examples").iterdir()) == ["val0", "val3", "val6"]
    assert (tmp_path / "out" / "overlays" / "val3.png").is_file()


def test_any_batch_size_and_workers_give_the_same_scores(toy, tmp_path):
    alone = evaluate(toy, tmp_path / "a")[1]
    together = evaluate(toy, tmp_path / "b", "--batch-size", "4", "--num-workers", "1")[1]
    assert alone["IoU_per_class"] == together["IoU_per_class"] and together["images"] == 7


def test_feature_propagation_and_flip_change_the_scores(toy, tmp_path):
    plain = evaluate(toy, tmp_path / "a")[1]
    spread_out = evaluate(toy, tmp_path / "b", "--resnet-topk", "3", "--resnet-iters", "25", "--flip")[1]
    assert spread_out["post_process"] == plain["post_process"] | {"resnet_iters": 25, "flip_average": True}
    assert spread_out["IoU_per_class"] != plain["IoU_per_class"] and spread_out["mIoU"] > 0.3


def break_row(shards, row):
    path = next(shards.glob("val*.tsv"))
    lines = path.read_bytes().split(b"\n")
    lines[row] = b"AAAA" + lines[row][4:]
    path.write_bytes(b"\n".join(lines))


def test_a_bad_row_is_reported_and_costs_no_other(toy, tmp_path, capsys):
    break_row(toy, 2)
    status, scores = evaluate(toy, tmp_path / "out", "--batch-size", "3")
    assert status == 0 and scores["images"] == 6 and len(scores["bad_rows"]) == 1
    assert "1 rows left out" in capsys.readouterr().out
    assert evaluate(toy, tmp_path / "out", "--strict")[0] == 1


def test_limit_takes_rows_from_the_whole_split(toy, tmp_path):
    assert evaluate(toy, tmp_path / "out", "--limit", "2")[1]["images"] == 2
    assert spread(10, 3) == [0, 4, 9] and spread(3, 10) == [0, 1, 2] and spread(0, 4) == [] and spread(5, 1) == [0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["model.bin", "{shards}"], "not a checkpoint"),
        (["model.pt", "{shards}", "--split", "test"], "test"),
        (["model.pt", "{shards}", "--class-names", "cat,dog"], "2 classes"),
        (["model.pt", "{shards}", "--device", "abc"], "not a device"),
        (["model.pt", "{shards}", "--override", "abc"], "KEY=VALUE"),
    ],
)
def test_user_errors_are_one_line(toy, capsys, arguments, message):
    assert main(["evaluate", *[a.format(shards=toy) for a in arguments]]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def _rank(rank, shards, out, port):
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    assert main(["evaluate", "model.pt", shards, "--device", "cpu", "--out", out, "--batch-size", "2"]) == 0


def test_two_processes_equal_one(toy, tmp_path):
    alone = evaluate(toy, tmp_path / "one")[1]
    break_row(toy, 2)
    expected = evaluate(toy, tmp_path / "bad")[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_rank, args=(str(toy), str(tmp_path / "two"), port), nprocs=2, start_method="fork")
    scores = json.loads((tmp_path / "two" / "scores.json").read_text())
    for key in ("IoU_per_class", "images", "pixels", "constant"):
        assert scores[key] == expected[key]
    assert scores["images"] == alone["images"] - 1 and len(scores["bad_rows"]) == 1
    assert len(list((tmp_path / "two" / "examples").iterdir())) == 6


def test_names():
    assert default_name("runs/a/checkpoint_best.pt") == "a/checkpoint_best" and default_name("x.pt") == "x"
    assert safe_name("a/b c.jpg") == "a_b_c.jpg" and safe_name("../..") == "image"
