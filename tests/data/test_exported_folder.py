"""Shards as a folder of files and back: the same rows, whatever their ids, and nothing half-written."""

import json
import os

import pytest

from ofaseg.data import exported_folder
from ofaseg.data.exported_folder import FolderRows, read_metadata, write_folder
from ofaseg.data.rows import ShardError
from ofaseg.data.shards import ShardReader, ShardWriter, load_vocabulary
from tests.data.sample_rows import VOCABULARY, make_row


def write(root, rows, split="train"):
    with ShardWriter(root, split, VOCABULARY, list(rows[0]), "tsv") as writer:
        for row in rows:
            writer.write(row)


def test_rows_come_back_and_files_are_ordinary(tmp_path):
    rows = [make_row(k) for k in range(6)]
    write(tmp_path / "shards", rows)
    write(tmp_path / "shards", rows[:2], "val")
    assert write_folder(tmp_path / "shards", tmp_path / "out") == {"train": 6, "val": 2}
    folder = FolderRows(tmp_path / "out", "train")
    assert list(folder) == list(ShardReader.for_split(tmp_path / "shards", "train")) == rows
    assert folder.vocabulary == load_vocabulary(tmp_path / "shards") and folder.columns == tuple(rows[0])
    assert (tmp_path / "out" / "images" / "train" / "sample_1.jpg").read_bytes() == rows[1]["image"]
    assert (tmp_path / "out" / "labels" / "train" / "sample_2.png").read_bytes() == rows[2]["label_map"]
    assert (tmp_path / "out" / "classes.txt").read_text() == "sky\ntall grass\ncar\n"
    assert not (tmp_path / "out" / "labels" / "train" / "sample_4.png").exists()  # a row without label map


def test_ids_that_are_no_file_names(tmp_path):
    ids = ["a", "A", "../escape", "/abs", "sub/b", "x" * 300, "naïve 猫", ".hidden", "row-00000001", "con?:*", "-", "end."]
    write(tmp_path / "shards", [make_row(k + 1) | {"id": name} for k, name in enumerate(ids)])
    write_folder(tmp_path / "shards", tmp_path / "out")
    assert [row["id"] for row in FolderRows(tmp_path / "out", "train")] == ids
    files = [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out" / "images").rglob("*") if p.is_file()]
    assert len({name.lower() for name in files}) == len(ids) and all(name.isascii() for name in files)
    assert sorted(os.listdir(tmp_path)) == ["out", "shards"]


def test_some_splits(tmp_path):
    write(tmp_path / "shards", [make_row(1)])
    write(tmp_path / "shards", [make_row(2)], "val")
    assert write_folder(tmp_path / "shards", tmp_path / "out", ["val"]) == {"val": 1}
    with pytest.raises(ShardError, match="no split 'train'; it has val"):
        FolderRows(tmp_path / "out", "train")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    write(tmp_path / "shards", [make_row(k) for k in range(4)])
    original, calls = exported_folder._write_file, []

    def fail_later(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise OSError(28, "No space left on device", "some file")
        return original(*arguments)

    monkeypatch.setattr(exported_folder, "_write_file", fail_later)
    with pytest.raises(ShardError, match="some file: cannot write .No space left on device.; check the disk"):
        write_folder(tmp_path / "shards", tmp_path / "out")
    assert os.listdir(tmp_path) == ["shards"]


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    write(tmp_path / "shards", [make_row(1)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ShardError, match="out: is there already; choose a new folder"):
        write_folder(tmp_path / "shards", tmp_path / "out")
    with pytest.raises(ShardError, match="no .tsv or .parquet file"):
        write_folder(tmp_path / "out", tmp_path / "other")
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def spoil_listing(text):
    return lambda out: (out / "rows" / "train.jsonl").write_text(text)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_listing("{\n{\n"), "train.jsonl, row 0: not valid JSON"),
        (spoil_listing('{"id": "a"}\n{"id": "b"}\n'), "train.jsonl, row 0: not an object with image, label_map, id"),
        (spoil_listing(""), "train.jsonl: 0 rows, metadata.json says 2; copy the folder again"),
        (lambda out: (out / "rows" / "train.jsonl").unlink(), "train.jsonl: cannot be read"),
        (lambda out: (out / "images" / "train" / "sample_1.jpg").unlink(), "row 0, column image: .*sample_1.jpg"),
        (lambda out: (out / "metadata.json").write_text("{"), "metadata.json: not valid JSON .*; restore it"),
        (lambda out: (out / "metadata.json").write_text(json.dumps({"kind": exported_folder._KIND})), "columns, splits or classes are not"),
    ],
)
def test_damage_is_named(tmp_path, spoil, message):
    write(tmp_path / "shards", [make_row(1), make_row(2)])
    write_folder(tmp_path / "shards", tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(ShardError, match=message):
        list(FolderRows(tmp_path / "out", "train"))


def test_a_listing_cannot_point_outside(tmp_path):
    write(tmp_path / "shards", [make_row(1)])
    write_folder(tmp_path / "shards", tmp_path / "out")
    listing = tmp_path / "out" / "rows" / "train.jsonl"
    for path in ("/etc/passwd", "../shards/vocabulary.json", 7):
        entry = json.loads(listing.read_text())
        listing.write_text(json.dumps(entry | {"image": path}) + "\n")
        with pytest.raises(ShardError, match="row 0, column image: .* is no path inside the folder"):
            FolderRows(tmp_path / "out", "train")[0]


def test_other_folders_have_no_metadata_of_ours(tmp_path):
    assert read_metadata(tmp_path / "nowhere") is None
    (tmp_path / "metadata.json").write_text('{"kind": "something else"}')
    assert read_metadata(tmp_path) is None
