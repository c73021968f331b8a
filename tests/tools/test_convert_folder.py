"""A run's shards are those of the folder it names, as that folder is now."""

import json
import os

import numpy as np
import pytest

from ofaseg.data.codec import decode_label_map
from ofaseg.data.folder import list_splits
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.vocabulary import IGNORE_INDEX
from tests.toy import NAMES, write_toy_folder
from tools.convert_folder import doctor_flags, main


@pytest.fixture
def folder(tmp_path):
    write_toy_folder(tmp_path / "a", 8)
    return tmp_path / "a"


def convert(folder, *flags, run="run", need=("train", "val")):
    out = folder.parent / run
    needed = [word for split in need for word in ("--need", split)]
    return main(["--root", str(folder), "--out", str(out / "shards"), "--run", str(out), *needed, *flags])


def content_hashes(folder, run="run"):
    return json.loads((folder.parent / run / "shards" / "vocabulary.json").read_text())["content_hash"]


def rows(folder) -> int:
    shards = folder.parent / "run" / "shards"
    return sum(len(ShardReader.for_split(shards, split)) for split in list_splits(shards))


def swap_two_label_maps(folder):
    first, second = sorted((folder / "labels").iterdir())[:2]
    content = first.read_bytes(), second.read_bytes()
    assert content[0] != content[1]
    first.write_bytes(content[1])
    second.write_bytes(content[0])


def test_the_same_folder_is_converted_once(folder, capsys):
    assert convert(folder) == 0 and rows(folder) == 8 and load_vocabulary(folder.parent / "run" / "shards").names == NAMES
    times = {path.name: path.stat().st_mtime_ns for path in (folder.parent / "run" / "shards").iterdir()}
    (folder.parent / "run" / "checkpoint_last.pt").touch()
    assert convert(folder) == 0 and "there already" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (folder.parent / "run" / "shards").iterdir()} == times


def test_changed_label_maps_are_converted_again(folder, capsys):
    assert convert(folder) == 0
    before = content_hashes(folder)
    swap_two_label_maps(folder)
    assert convert(folder) == 0 and "before its files changed are replaced" in capsys.readouterr().out
    assert content_hashes(folder) != before and rows(folder) == 8


def test_shards_of_another_folder_are_replaced_whole(folder, capsys):
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir()
            for path in sorted((folder / kind).glob("photo*"))[:2]:
                path.rename(folder / kind / split / path.name)
    assert convert(folder) == 0 and set(list_splits(folder.parent / "run" / "shards")) == {"train", "val", "test"}
    write_toy_folder(folder.parent / "b", 5)
    assert convert(folder.parent / "b") == 0 and f"folder {folder} are replaced" in capsys.readouterr().out
    assert set(list_splits(folder.parent / "run" / "shards")) == {"train", "val"} and rows(folder) == 5


@pytest.mark.parametrize("change", ["folder", "files", "flags", "unknown"])
def test_a_model_of_other_data_is_not_trained_on(folder, change, capsys):
    assert convert(folder) == 0
    (folder.parent / "run" / "checkpoint_last.pt").touch()
    before, other, flags = content_hashes(folder), folder, []
    if change == "folder":
        write_toy_folder(folder.parent / "b", 8)
        other = folder.parent / "b"
    elif change == "files":
        swap_two_label_maps(folder)
    elif change == "flags":
        flags = ["--val-fraction", "0.5"]
    else:
        (folder.parent / "run" / "converted_from.json").unlink()
    assert convert(other, *flags) == 1
    told = {"folder": f"folder {folder};", "files": "before its files changed", "flags": "other flags (none)", "unknown": "unknown origin"}
    error = capsys.readouterr().err
    assert told[change] in error and "set OUT" in error and content_hashes(folder) == before
    assert convert(other, *flags, run="new") == 0


def test_a_conversion_that_was_cut_off_is_written_again(folder):
    assert convert(folder) == 0
    before = content_hashes(folder)
    (path,) = list_splits(folder.parent / "run" / "shards")["train"]
    os.unlink(path)
    assert convert(folder) == 0 and content_hashes(folder) == before and rows(folder) == 8


def test_shards_of_unknown_origin_stay(folder, capsys):
    assert convert(folder) == 0
    (folder.parent / "run" / "shards" / "converted_from.json").unlink()
    swap_two_label_maps(folder)
    before = content_hashes(folder)
    assert convert(folder) == 1 and "unknown origin" in capsys.readouterr().err and content_hashes(folder) == before


def test_a_damaged_record_is_named(folder, capsys):
    assert convert(folder) == 0
    (folder.parent / "run" / "converted_from.json").write_text("{")
    assert convert(folder) == 1 and "run/converted_from.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("splits", [("train", "test"), ("train",), ("val",)])
def test_a_split_that_is_needed_and_missing_is_named_before_anything_is_written(folder, splits, capsys):
    for split in splits:
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir()
            path = min((folder / kind).glob("photo*"))
            path.rename(folder / kind / split / path.name)
    missing = "train" if "train" not in splits else "val"
    assert convert(folder) == 1 and f"this run also needs {missing}; add images/{missing}" in capsys.readouterr().err
    assert not (folder.parent / "run").exists()


def test_no_split_for_validation_because_of_a_flag(folder, capsys):
    assert convert(folder, "--val-fraction", "0") == 1 and "also needs val" in capsys.readouterr().err
    assert convert(folder, "--splits", "train") == 1 and "also needs val" in capsys.readouterr().err
    assert convert(folder, "--val-fraction", "2") == 1 and "--val-fraction 2.0" in capsys.readouterr().err


def test_other_names_of_the_validation_split_do(folder):
    for split in ("train", "validation"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir()
            for path in sorted((folder / kind).glob("photo*"))[:4]:
                path.rename(folder / kind / split / path.name)
    assert convert(folder) == 0
    time = (folder.parent / "run" / "shards" / "vocabulary.json").stat().st_mtime_ns
    assert convert(folder) == 0 and (folder.parent / "run" / "shards" / "vocabulary.json").stat().st_mtime_ns == time


def test_flags_reach_the_converter(folder):
    (folder / "labels").rename(folder / "my maps")
    flags = ["--label-maps", "my maps", "--label-offset", "1", "--ignore", "0,255"]
    assert convert(folder, *flags) == 0
    shards = folder.parent / "run" / "shards"
    reader, vocabulary = ShardReader.for_split(shards, "train"), load_vocabulary(shards)
    class_ids = np.concatenate([np.unique(decode_label_map(reader[i]["label_map"], vocabulary)) for i in range(len(reader))])
    assert set(class_ids.tolist()) == {IGNORE_INDEX, 0, 1}


def test_flags_that_the_doctor_has_reach_it(folder, capsys):
    """A folder whose labels count from 1 is checked as well, and found well with its flags."""
    assert doctor_flags(["--label-offset", "1", "--ignore=0,255"]) == ["--label-offset", "1", "--ignore=0,255"]
    assert doctor_flags(["--label-maps", "my maps"]) is doctor_flags(["--label-offset"]) is None
    (folder / "labels" / "photo 3.png").write_bytes(b"not a PNG")
    assert convert(folder, "--label-offset", "0") == 1
    assert "samples looked at" in capsys.readouterr().out


def test_the_folder_is_checked_before_it_is_converted(folder, capsys):
    (folder / "labels" / "photo 3.png").write_bytes(b"not a PNG")
    assert convert(folder) == 1
    assert "photo 3.png" in capsys.readouterr().out and not list((folder.parent / "run").rglob("*.parquet"))
