"""The prepare command: arguments, errors, both ways to start it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import prepare
from ofaseg.data.shards import ShardReader
from tests.data_prep.test_camvid import write_raw

ROOT = Path(__file__).resolve().parents[2]


def test_all_splits(tmp_path, capsys):
    for split, stems in (("train", ("a", "b", "c")), ("val", ("d",)), ("test", ("e", "f"))):
        write_raw(tmp_path / "raw", split, stems, width=10)
    assert prepare.main(["camvid", "--root", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--format", "tsv"]) == 0
    assert json.loads((tmp_path / "out" / "vocabulary.json").read_text())["num_rows"] == {"train": 3, "val": 1, "test": 2}
    assert [ShardReader.for_split(tmp_path / "out", "test").read(k)["id"] for k in range(2)] == ["e", "f"]
    output = capsys.readouterr().out
    assert "train: 3 rows in 1 file" in output and "photos 6x10 (height x width)" in output
    assert "no pixel of pedestrian, bicyclist" in output and "sky 11.1" in output and "without label: 10.0 of all" in output


def test_some_splits_and_numbers(tmp_path):
    arguments = ["shapes", "--out", str(tmp_path), "--splits", "train,val", "--num", "train=3,val=2", "--seed", "4"]
    assert prepare.main(arguments) == 0
    assert [len(ShardReader.for_split(tmp_path, split)) for split in ("train", "val")] == [3, 2]
    assert ShardReader.for_split(tmp_path, "train").read(0)["id"] == "train-4-000000"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["imagenet"], "unknown dataset 'imagenet'; choose from ade20k, ade20k_panoptic, camvid"),
        (["camvid"], "camvid needs --root"),
        (["camvid", "--root", "nowhere"], "expected nowhere/images/train"),
        (["camvid", "--root", "nowhere", "--splits", "trian"], "no split 'trian'; choose from train, val, test"),
    ],
)
def test_errors(tmp_path, capsys, arguments, message):
    assert prepare.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_checksums_hold_when_a_later_split_fails(tmp_path):
    for split in ("train", "val"):
        write_raw(tmp_path / "raw", split, ("a",), width=10)
    options = ["camvid", "--root", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--splits", "train,val", "--format"]
    assert prepare.main([*options, "tsv"]) == 0
    write_raw(tmp_path / "other", "train", ("b",), width=9)
    (tmp_path / "other" / "val.txt").write_text("gone\n")
    for kind in ("images", "labels"):
        (tmp_path / "other" / kind / "val").mkdir()
    options[2] = str(tmp_path / "other")
    assert prepare.main([*options, "tsv"]) == 1
    entries = json.loads((tmp_path / "out" / "croissant.json").read_text())["distribution"]
    sums = {entry["name"]: entry["sha256"] for entry in entries if "sha256" in entry}
    files = list((tmp_path / "out").glob("*.tsv"))
    assert len(files) == 2 and sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert ShardReader.for_split(tmp_path / "out", "train").read(0)["id"] == "b"


def test_size_mismatch_names_the_sample(tmp_path, capsys):
    write_raw(tmp_path)
    Image.fromarray(np.zeros((13, 6), np.uint8)).save(tmp_path / "labels" / "train" / "a_1.png")
    assert prepare.main(["camvid", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--splits", "train"]) == 1
    error = capsys.readouterr().err
    assert "height x width 13x6, but the image has 6x13 (sample 'a_1') (height and width are swapped)" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_source_is_one_message(tmp_path, capsys):
    write_raw(tmp_path)
    (tmp_path / "labels" / "train" / "a_1.png").write_bytes(b"\x89PNG")
    assert prepare.main(["camvid", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--splits", "train"]) == 1
    assert "a_1.png: not an image that can be read" in capsys.readouterr().err


def test_verify(tmp_path, capsys):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        options = ["--splits", "train,val", "--num", "3", "--format", "tsv", "--rows-per-shard", "1", "--workers", "1"]
        assert prepare.main(["shapes", "--out", folder, *options]) == 0
    capsys.readouterr()
    assert prepare.main(["--verify", *folders]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: {split}: 3 rows, as they were written" for folder in folders for split in ("train", "val")
    ]
    for k in (0, 2):
        path = tmp_path / "a" / f"train-0000{k}-of-00003.tsv"
        path.write_bytes(path.read_bytes().replace(b"\ttrain-", b"\tother-"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "vocabulary.json").write_text("{")
    assert prepare.main(["--verify", *folders, str(tmp_path / "c"), str(tmp_path / "d")]) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 3
    errors = output.err.splitlines()
    assert len(errors) == 4
    for error, start in zip(errors, (f"a/train-0000{k}-of-00003.tsv: its rows" for k in (0, 2))):
        assert error.startswith(f"error: {tmp_path}/{start}")
    assert "c/vocabulary.json: not valid JSON" in errors[2] and "d: no such folder" in errors[3]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["shapes"], "the following arguments are required: --out"),
        ([], "the following arguments are required: dataset, --out"),
        (["shapes", "--verify", "x"], "--verify takes folders alone; leave out dataset"),
        (["--verify", "x", "--out", "y"], "leave out --out"),
        (["--verify"], "expected at least one argument"),
        (["camvid", "--root", "nowhere", "--out", "y", "--seed", "1"], "unrecognized arguments: --seed 1"),
        (["shapes", "--out", "y", "--workers", "0"], "'0' is not a whole number of at least 1"),
        (["shapes", "--out", "y", "--num", "many"], "argument --num: 'many': 'many' is not a number"),
        (["shapes", "--out", "y", "--num", "train=0"], "at least 1"),
        (["shapes", "--out", "y", "--num", "dev=3"], "no split 'dev'; choose from train, val, test"),
    ],
)
def test_usage(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        prepare.main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("start", [["data_prep/prepare.py"], ["-m", "data_prep.prepare"]])
def test_both_ways_to_start(tmp_path, start):
    command = [sys.executable, *start, "shapes", "--out", str(tmp_path), "--splits", "val", "--num", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "val: 2 rows" in done.stdout
