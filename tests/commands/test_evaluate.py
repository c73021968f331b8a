"""`ofaseg evaluate` on toy shards: files, bad rows, batch sizes, processes."""

import json
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

from ofaseg.cli import main
from ofaseg.commands.evaluate import default_name, example_name, safe_name, spread
from ofaseg.evaluation.confusion import read_matrix
from ofaseg.evaluation.examples import read_index
from ofaseg.evaluation.pictures import read_index_png
from ofaseg.evaluation.semantic import confusion_matrix, semantic_scores


def evaluate(shards, out, *more):
    status = main(["evaluate", "model.pt", str(shards), "--device", "cpu", "--out", str(out), *more])
    return status, json.loads((out / "scores.json").read_text()) if (out / "scores.json").exists() else None


def test_scores_table_and_examples(toy, tmp_path, capsys):
    status, scores = evaluate(toy, tmp_path / "out", "--name", "mine")
    assert status == 0 and scores["images"] == 7 and scores["mIoU"] > 0.7 and scores["bad_rows"] == []
    assert scores["class_names"] == ["red", "green", "blue"] and scores["post_process"]["resnet_iters"] == 0
    printed = capsys.readouterr().out
    assert "| mine |" in printed and "best constant prediction" in printed
    assert "| mine |" in (tmp_path / "out" / "scores.md").read_text()
    matrix = read_matrix(tmp_path / "out" / "confusion.npy", 3)
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert iou.tolist() == pytest.approx(scores["IoU_per_class"]) and matrix.sum() == scores["pixels"]


def test_examples_are_the_best_the_worst_and_random_ones(toy, tmp_path):
    out = tmp_path / "out"
    evaluate(toy, out, "--examples", "1", "--examples-seed", "5", "--batch-size", "4")
    photos = read_index(out / "examples")
    of = {group: next(photo for photo in photos if group in photo.groups) for group in ("best", "worst", "random")}
    assert of["best"].name == f"val{of['best'].row}" and (out / "overlays" / f"{of['worst'].name}.png").is_file()
    every = tmp_path / "every"
    evaluate(toy, every, "--examples", "7")
    alone = {photo.row: photo.miou for photo in read_index(every / "examples")}
    assert len(alone) == 7 and of["best"].miou == max(alone.values()) and of["worst"].miou == min(alone.values())
    for photo in photos:  # the pictures kept are of that photo: its mIoU follows from them
        labels, prediction = (read_index_png(out / "examples" / photo.name / f"{name}.png") for name in ("labels", "prediction"))
        matrix = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(labels), 3)
        assert semantic_scores(matrix)["mIoU"] == pytest.approx(photo.miou)
    evaluate(toy, tmp_path / "again", "--examples", "1", "--examples-seed", "5", "--resnet-iters", "9")
    again = read_index(tmp_path / "again" / "examples")
    assert next(photo.row for photo in again if "random" in photo.groups) == of["random"].row


def test_any_batch_size_and_workers_give_the_same_scores(toy, tmp_path):
    alone = evaluate(toy, tmp_path / "a")[1]
    together = evaluate(toy, tmp_path / "b", "--batch-size", "4", "--num-workers", "1")[1]
    assert alone["IoU_per_class"] == together["IoU_per_class"] and together["images"] == 7


def test_feature_propagation_and_flip_change_the_scores(toy, tmp_path):
    plain = evaluate(toy, tmp_path / "a")[1]
    spread_out = evaluate(toy, tmp_path / "b", "--resnet-topk", "3", "--resnet-iters", "25", "--flip")[1]
    assert spread_out["post_process"] == plain["post_process"] | {"resnet_iters": 25, "flip_average": True}
    assert spread_out["IoU_per_class"] != plain["IoU_per_class"] and spread_out["mIoU"] > 0.3


def test_windows_and_scales_of_a_model_that_sees_patches_alone(toy, tmp_path):
    """Windows change nothing for it; two scales do."""
    plain = evaluate(toy, tmp_path / "a")[1]
    windows = evaluate(toy, tmp_path / "b", "--override", "window=16", "--override", "window_stride=12")[1]
    assert windows["IoU_per_class"] == plain["IoU_per_class"] and windows["post_process"]["window_stride"] == 12
    scales = evaluate(toy, tmp_path / "c", "--override", "scales=1,0.5")[1]
    assert scales["IoU_per_class"] != plain["IoU_per_class"] and scales["mIoU"] > 0.5


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
    alone, two = (read_index(tmp_path / name / "examples") for name in ("bad", "two"))
    assert alone == two and len(two) == 6
    folders = {path.name for path in (tmp_path / "two" / "examples").iterdir() if path.is_dir()}
    assert folders == {photo.name for photo in two}


def test_names():
    assert default_name("runs/a/checkpoint_best.pt") == "a/checkpoint_best" and default_name("x.pt") == "x"
    assert safe_name("a/b c.jpg") == "a_b_c.jpg" and safe_name("../..") == "image"


class Rows:
    columns = ("id", "image")

    def read(self, index, columns):
        return {"id": ["plain-1.jpg", "a/b", "a_b", ".."][index]}


def test_examples_of_different_ids_have_different_folders():
    assert [example_name(Rows(), k) for k in range(4)] == ["plain-1.jpg", "a_b-1", "a_b", "image-3"]
