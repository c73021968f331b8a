"""The command that writes shards in another form: TSV -> folder -> Parquet -> folder -> TSV loses nothing."""

import json

import pytest

from data_prep import prepare
from ofaseg.data.shards import ShardReader
from tests.data_prep.raw_layouts import write_shards
from tools import convert_shards


def content(root):
    return json.loads((root / "vocabulary.json").read_text())["content_hash"]


def tree(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_form_holds_the_same_rows(tmp_path):
    first = write_shards(tmp_path / "tsv", "tsv")
    write_shards(first, "tsv", num=2, split="val")
    assert convert_shards.main([str(first), "--to", "folder", "--out", str(tmp_path / "folder")]) == 0
    folder = ["folder", "--root", str(tmp_path / "folder"), "--workers", "1"]
    assert prepare.main([*folder, "--format", "parquet", "--out", str(tmp_path / "parquet")]) == 0
    assert convert_shards.main([str(tmp_path / "parquet"), "--to", "folder", "--out", str(tmp_path / "again")]) == 0
    assert convert_shards.main([str(tmp_path / "parquet"), "--to", "tsv", "--out", str(tmp_path / "back")]) == 0
    assert content(first) == content(tmp_path / "parquet") == content(tmp_path / "back")
    assert tree(tmp_path / "folder") == tree(tmp_path / "again") and len(tree(tmp_path / "folder")) > 12
    assert list(ShardReader.for_split(first, "val")) == list(ShardReader.for_split(tmp_path / "back", "val"))


def test_one_split(tmp_path):
    first = write_shards(tmp_path / "a")
    write_shards(first, num=2, split="val")
    assert convert_shards.main([str(first), "--to", "parquet", "--out", str(tmp_path / "b"), "--splits", "val"]) == 0
    assert json.loads((tmp_path / "b" / "vocabulary.json").read_text())["num_rows"] == {"val": 2}
    assert convert_shards.main([str(first), "--to", "folder", "--out", str(tmp_path / "c"), "--splits", "val"]) == 0
    assert [path.name for path in (tmp_path / "c" / "rows").iterdir()] == ["val.jsonl"]


def test_options_of_prepare_are_passed_on(tmp_path, caplog, capsys):
    first = write_shards(tmp_path / "a")
    command = [str(first), "--to", "parquet", "--out", str(tmp_path / "b"), "--rows-per-shard", "2", "--workers", "1"]
    assert convert_shards.main(command) == 0
    assert len(list((tmp_path / "b").glob("train-*-of-00003.parquet"))) == 3
    caplog.set_level("INFO")
    assert convert_shards.main([*command, "--resume"]) == 0
    assert "train: complete, kept as it is" in caplog.text
    with pytest.raises(SystemExit):
        convert_shards.main([str(first), "--to", "folder", "--out", str(tmp_path / "c"), "--workers", "2"])
    assert "--to folder has no --workers; leave it out" in capsys.readouterr().err


def test_errors(tmp_path, capsys):
    first = write_shards(tmp_path / "a")
    assert convert_shards.main([str(first), "--to", "folder", "--out", str(first)]) == 1
    assert "is there already; choose a new folder" in capsys.readouterr().err
    assert convert_shards.main([str(first), "--to", "folder", "--out", str(tmp_path / "b"), "--splits", "dev"]) == 1
    assert "no shards of split 'dev'; it has train" in capsys.readouterr().err
