"""verify_shards, verify_folder: as written, renamed or joined is fine; other rows are found and their file is named."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ofaseg.data import parquet
from ofaseg.data.rows import FILE_COLUMNS
from ofaseg.data.shards import ShardError, ShardReader, ShardWriter
from ofaseg.data.verify import verify_folder, verify_shards
from tests.data.sample_rows import VOCABULARY, make_row

COLUMNS = tuple(make_row(0))
FORMATS = ("tsv", "parquet")


def write(root, format, split="train", start=0, count=5):
    with ShardWriter(root, split, VOCABULARY, COLUMNS, format, rows_per_shard=3) as writer:
        for k in range(start, start + count):
            writer.write(make_row(k))
    return root


@pytest.mark.parametrize("format", FORMATS)
def test_as_written(tmp_path, format):
    write(tmp_path, format)
    write(tmp_path, format, "val", count=2)
    assert verify_shards(tmp_path) == {"train": 5, "val": 2} and verify_shards(tmp_path, ["val"]) == {"val": 2}


@pytest.mark.parametrize("format", FORMATS)
def test_another_file_of_as_many_rows(tmp_path, format):
    write(tmp_path / "a", format)
    write(tmp_path / "b", format, start=10)
    name = f"train-00001-of-00002.{format}"
    os.replace(tmp_path / "b" / name, tmp_path / "a" / name)
    assert len(ShardReader.for_split(tmp_path / "a", "train")) == 5, "opening counts only"
    with pytest.raises(ShardError, match=f"{name}: its rows are not those that were written"):
        verify_shards(tmp_path / "a")


def test_one_changed_character(tmp_path):
    path = write(tmp_path, "tsv") / "train-00000-of-00002.tsv"
    path.write_bytes(path.read_bytes().replace(b"sample_1", b"sample_7", 1))
    with pytest.raises(ShardError, match="train-00000-of-00002.tsv: its rows"):
        verify_shards(tmp_path)


def test_joined_files(tmp_path):
    write(tmp_path, "tsv")
    parts = [tmp_path / f"train-0000{k}-of-00002.tsv" for k in range(2)]
    lines = b"".join(part.read_bytes() for part in parts).splitlines(keepends=True)
    for part in parts:
        part.unlink()
    (tmp_path / "train.tsv").write_bytes(b"".join(lines))
    assert verify_shards(tmp_path) == {"train": 5}
    (tmp_path / "train.tsv").write_bytes(b"".join(lines[::-1]))
    with pytest.raises(ShardError, match="'train' does not hold the rows that were written"):
        verify_shards(tmp_path)


def test_nothing_to_compare_with(tmp_path):
    with pytest.raises(ShardError, match="no hashes of files"):
        verify_shards(tmp_path)
    write(tmp_path, "tsv")
    with pytest.raises(ShardError, match="no hashes of split 'test' .num_rows is missing.; it has those of train"):
        verify_shards(tmp_path, ["test"])
    with pytest.raises(ShardError, match="no such folder"):
        verify_shards(tmp_path / "elsewhere")


@pytest.mark.parametrize("format", FORMATS)
def test_every_faulty_file_is_named(tmp_path, format):
    write(tmp_path, format, count=9)
    write(tmp_path, format, "val", count=2)
    write(tmp_path / "b", format, start=20, count=9)
    write(tmp_path / "c", format, start=3, count=2)
    names = [f"train-0000{k}-of-00003.{format}" for k in range(3)]
    os.replace(tmp_path / "b" / names[0], tmp_path / names[0])
    os.replace(tmp_path / "c" / f"train-00000-of-00001.{format}", tmp_path / names[1])
    (tmp_path / names[2]).write_bytes(b"")
    checks = verify_folder(tmp_path)
    assert checks["val"] == (2, []) and len(checks["train"].faults) == 3
    expected = ("its rows are not those", "2 rows, vocabulary.json says 3: an incomplete or mixed copy", "empty|not a complete Parquet")
    for name, fault, problem in zip(names, checks["train"].faults, expected):
        assert fault.file == str(tmp_path / name)
        with pytest.raises(ShardError, match=problem):
            raise fault


def edit(root, change):
    path = root / "vocabulary.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["files"]["train"][1].pop("content_hash"), "files of split 'train': entry 1 has no content_hash, a text"),
        (lambda d: d["files"]["train"][0].pop("rows"), "files of split 'train': entry 0 has no rows, a number; restore the file"),
        (lambda d: d["files"].update(train=["a"]), "entry 0 has no name"),
        (lambda d: d["files"].update(train=None), "files of split 'train' is not a list"),
        (lambda d: d.pop("content_hash"), "no hashes of split 'train'"),
        (lambda d: d["content_hash"].clear(), "no hashes of split 'train'"),
        (lambda d: d.pop("num_rows"), "no hashes of split 'train'"),
        (lambda d: d.update(num_rows=5), "num_rows of split 'train' is not a number"),
        (lambda d: d.pop("files"), "no hashes of split 'train'"),
        (lambda d: d.pop("columns"), "does not list the columns"),
        (lambda d: d.update(writing="train"), "writing is not a list of splits"),
    ],
)
def test_a_description_edited_by_hand(tmp_path, change, message):
    write(tmp_path, "tsv")
    edit(tmp_path, change)
    with pytest.raises(ShardError, match=message):
        verify_shards(tmp_path)


def test_an_interrupted_split_is_not_passed_over(tmp_path):
    write(tmp_path, "tsv")
    write(tmp_path, "tsv", "val", count=2)

    def interrupt(description):
        description["writing"] = ["val"]
        for key in ("num_rows", "content_hash", "files"):
            del description[key]["val"]

    edit(tmp_path, interrupt)
    checks = verify_folder(tmp_path)
    assert checks["train"] == (5, []) and "writing split 'val' was interrupted" in str(checks["val"].faults[0])
    with pytest.raises(ShardError, match="'val' was interrupted"):
        verify_shards(tmp_path)


def test_a_number_that_is_none(tmp_path):
    row = make_row(2)
    path = write(tmp_path, "parquet", count=1) / "train-00000-of-00001.parquet"
    boxes = [{"box": [0.0, 0.0, float("nan"), 1.0], "text": "", "class_id": None}]
    table = pa.Table.from_pylist([row | {n: {"bytes": row[n]} for n in FILE_COLUMNS} | {"boxes": boxes}], parquet.schema(COLUMNS))
    pq.write_table(table, path)
    with pytest.raises(ShardError, match="train-00000-of-00001.parquet, row 0: "):
        verify_shards(tmp_path)
