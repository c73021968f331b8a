"""Splits of a folder of Parquet files, by the names of files and folders."""

import pytest

from data_prep.hf_files import list_splits, parquet_splits
from data_prep.source import SourceError


def splits_of(root, *names):
    found = parquet_splits(root, [root / name for name in names])
    return {split: [file.removeprefix(f"{root}/") for file in files] for split, files in found.items()}


@pytest.mark.parametrize(
    "names, splits",
    [
        (["dev.parquet", "test.parquet", "train.parquet"], ["dev", "test", "train"]),
        (["test-0.parquet", "train-0.parquet", "train-1.parquet"], ["test", "train"]),
        (["test.parquet", "train-v2.parquet"], ["test", "train-v2"]),
        (["my_test.parquet", "my_train.parquet"], ["my_test", "my_train"]),
        (["extra.parquet", "train.parquet"], ["extra", "train"]),
        (["test-00000-of-00001-0123abcd.parquet", "train-00000-of-00001-0123abcd.parquet"], ["test", "train"]),
        (["validation-00000-of-00001.parquet"], ["validation"]),
        (["default/test/0000.parquet", "default/train/0000.parquet", "default/train/0001.parquet"], ["test", "train"]),
        (["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"], ["test", "train"]),
        (["testament.parquet", "x.parquet"], ["train"]),
    ],
)
def test_no_split_gets_the_rows_of_another(tmp_path, names, splits):
    found = splits_of(tmp_path, *names)
    assert list(found) == splits and sorted(file for files in found.values() for file in files) == names
    for split, files in found.items():
        assert len(splits) == 1 or all(split in file for file in files)


def test_what_becomes_train_without_saying_so_is_logged(tmp_path, caplog):
    assert splits_of(tmp_path, "a.parquet", "b.parquet") == {"train": ["a.parquet", "b.parquet"]}
    assert "no file name tells a split; split train is all of a.parquet, b.parquet" in caplog.text


def test_a_single_file_has_the_split_of_its_name(tmp_path):
    for name, split in (("validation-00000-of-00001.parquet", "validation"), ("test/0000.parquet", "test"), ("x.parquet", "train")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert list_splits(tmp_path / name) == [split]


def test_hidden_files_and_lists_of_an_imagefolder_are_no_dataset(tmp_path):
    for name in (".cache/train/0000.parquet", "train/metadata.parquet", "a/train/0000.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert list_splits(tmp_path) == ["train"]
    (tmp_path / "b" / "test").mkdir(parents=True)
    (tmp_path / "b" / "test" / "0000.parquet").touch()
    with pytest.raises(SourceError, match="Parquet files of several datasets .a, b.; give the folder of one"):
        list_splits(tmp_path)
