"""The export command: files that `prepare.py coco_format` reads back to the same rows; one message for what cannot be exported."""

import shutil

from data_prep import prepare
from ofaseg.data.shards import ShardReader
from tests.data_prep.raw_layouts import write_shards
from tests.data_prep.raw_segments import write_coco_format
from tools import export_coco


def rows(folder):
    return [dict(row) for row in ShardReader.for_split(folder, "train")]


def test_shards_there_and_back(tmp_path, capsys):
    write_coco_format(tmp_path / "raw")
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "exported"
    assert prepare.main(["coco_format", "--root", str(tmp_path / "raw"), "--out", str(first), "--workers", "1"]) == 0
    assert export_coco.main([str(first), "--out", str(out / "annotations")]) == 0
    assert "panoptic_train.json: 2 photos" in capsys.readouterr().out
    shutil.copytree(tmp_path / "raw" / "images", out / "images")
    assert prepare.main(["coco_format", "--root", str(out), "--out", str(second), "--workers", "1"]) == 0
    assert rows(first) == rows(second)


def test_shards_without_segments(tmp_path, capsys):
    write_shards(tmp_path / "plain", columns=("image", "label_map", "id"))
    assert export_coco.main([str(tmp_path / "plain"), "--out", str(tmp_path / "out")]) == 1
    assert "neither segments nor instances" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert export_coco.main([str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 1
    assert "no vocabulary.json" in capsys.readouterr().err
