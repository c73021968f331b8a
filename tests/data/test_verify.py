"""verify_shards: as written, renamed or joined is fine; other rows are found and their file is named."""

import os

import pytest

from ofaseg.data.shards import ShardError, ShardReader, ShardWriter
from ofaseg.data.verify import verify_shards
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
    with pytest.raises(ShardError, match="no hashes of split 'test'; it has those of train"):
        verify_shards(tmp_path, ["test"])
