"""Hugging Face datasets from disk: ways to store them, columns, class names, kept bytes, errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep import prepare
from data_prep.hf import HfSource, choose_columns
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary
from tests.data_prep.raw_layouts import CLASSES, hf_dataset, row_of, write_pair


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` keeps its copies of Parquet files below the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def run(root, out, *options):
    return prepare.main(["hf", "--root", str(root), "--out", str(out), "--workers", "1", *map(str, options)])


def check_rows(out, files, split="train", num=3):
    """The rows hold the bytes of the files <k>.jpg and <k>.png."""
    reader = ShardReader.for_split(out, split)
    assert len(reader) == num
    for k, row in enumerate(reader):
        assert row["image"] == (files / f"{k}.jpg").read_bytes() and row["label_map"] == (files / f"{k}.png").read_bytes()
    return reader


def test_saved_dataset_keeps_its_bytes(tmp_path):
    hf_dataset(tmp_path / "files").save_to_disk(str(tmp_path / "saved"))
    assert run(tmp_path / "saved", tmp_path / "out") == 0
    reader, vocabulary = check_rows(tmp_path / "out", tmp_path / "files"), load_vocabulary(tmp_path / "out")
    assert [row["id"] for row in reader] == ["10", "11", "12"] and vocabulary.names == CLASSES
    assert codec.decode_label_map(reader[0]["label_map"], vocabulary)[0].tolist() == [0, 1, 2, IGNORE_INDEX]


def test_saved_dict_has_its_splits_and_values_from_one(tmp_path):
    import datasets

    data = hf_dataset(tmp_path / "files", offset=1).remove_columns(["objects", "image_id"])
    datasets.DatasetDict({"train": data, "validation": data.select([0])}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "id2label.json").write_text(json.dumps({str(k): name for k, name in enumerate(CLASSES)}))
    assert run(tmp_path / "saved", tmp_path / "out", "--label-offset", 1) == 0
    check_rows(tmp_path / "out", tmp_path / "files", "validation", 1)
    reader, vocabulary = check_rows(tmp_path / "out", tmp_path / "files"), load_vocabulary(tmp_path / "out")
    assert reader[2]["id"] == "train-00000002" and vocabulary.names == CLASSES
    assert codec.decode_label_map(reader[0]["label_map"], vocabulary)[0].tolist() == [0, 1, 2, IGNORE_INDEX]


def test_values_and_names_from_one(tmp_path):
    hf_dataset(tmp_path / "files").save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "id2label.json").write_text(json.dumps({str(k + 1): name for k, name in enumerate(CLASSES)}))
    assert run(tmp_path / "saved", tmp_path / "out", "--ignore", "0,255") == 0
    row, vocabulary = ShardReader.for_split(tmp_path / "out", "train")[0], load_vocabulary(tmp_path / "out")
    assert codec.decode_label_map(row["label_map"], vocabulary)[0].tolist() == [IGNORE_INDEX, 0, 1, IGNORE_INDEX]


def test_parquet_files(tmp_path):
    data = hf_dataset(tmp_path / "files")
    (tmp_path / "raw").mkdir()
    data.select([0, 1]).to_parquet(str(tmp_path / "raw" / "train-00000-of-00002.parquet"))
    data.select([2]).to_parquet(str(tmp_path / "raw" / "train-00001-of-00002.parquet"))
    data.select([0]).to_parquet(str(tmp_path / "raw" / "test-00000-of-00001.parquet"))
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    check_rows(tmp_path / "out", tmp_path / "files")
    check_rows(tmp_path / "out", tmp_path / "files", "test", 1)
    assert run(tmp_path / "raw" / "test-00000-of-00001.parquet", tmp_path / "one") == 0
    check_rows(tmp_path / "one", tmp_path / "files", "test", 1)


def test_parquet_files_as_the_hub_converts_them(tmp_path):
    data = hf_dataset(tmp_path / "files")
    for split, rows in (("train", [0, 1, 2]), ("validation", [0])):
        (tmp_path / "raw" / "default" / split).mkdir(parents=True)
        data.select(rows).to_parquet(str(tmp_path / "raw" / "default" / split / "0000.parquet"))
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    check_rows(tmp_path / "out", tmp_path / "files")
    check_rows(tmp_path / "out", tmp_path / "files", "validation", 1)


def test_parquet_without_the_types_of_datasets(tmp_path):
    """Columns of plain bytes, as other tools write them, are image files too; lists of numbers are label maps."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_pair(tmp_path / "0.jpg", tmp_path / "0.png", row_of([0, 1, 2, 2], height=3))
    table = {"photo": [(tmp_path / "0.jpg").read_bytes()], "mask": [[[0, 1, 2, 2]] * 3]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    assert run(tmp_path / "x.parquet", tmp_path / "out", "--class-names", ",".join(CLASSES)) == 0
    row = ShardReader.for_split(tmp_path / "out", "train")[0]
    assert row["image"] == table["photo"][0]
    np.testing.assert_array_equal(codec.decode_label_map(row["label_map"], load_vocabulary(tmp_path / "out")), [[0, 1, 2, 2]] * 3)


def test_columns_are_found_by_type_and_name():
    import datasets

    image, number, text = datasets.Image(), datasets.Value("int64"), datasets.Value("string")
    array = datasets.Array2D((2, 3), "int32")
    for features, expected in [
        ({"image": image, "annotation": image, "label": number}, ("image", "annotation")),
        ({"a": image, "mask": image, "text": text}, ("a", "mask")),
        ({"img": image, "other": image}, ("img", "other")),
        ({"x": image, "y": array}, ("x", "y")),
        ({"jpg": datasets.Value("binary"), "seg": {"bytes": datasets.Value("binary"), "path": text}}, ("jpg", "seg")),
    ]:
        assert choose_columns(features, None, None) == expected
    features = {"image": image, "annotation": image, "instances": image}
    assert choose_columns(features, None, "instances") == ("image", "instances")
    for features, given, message in [
        ({"a": image, "b": image}, (None, None), "cannot tell which column it is: give --image-column; the dataset has a "),
        ({"image": image, "label": number}, (None, None), "give --label-column"),
        ({"image": image, "x": image, "y": image}, (None, None), "give --label-column"),
        ({"image": image, "mask": image}, ("img", None), "--image-column 'img' is not a column"),
        ({"image": image, "mask": image}, ("mask", "mask"), "both 'mask'"),
    ]:
        with pytest.raises(SourceError, match=message):
            choose_columns(features, *given)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda d: d.remove_columns(["objects"]), [], "no class names (none of its features is a ClassLabel of segments or pixels)"),
        (lambda d: d, ["--class-names", "sky,car"], "row 0, column annotation: label value 2 (first at x 2, y 0) is no class"),
        (lambda d: d, ["--id-column", "objects"], "--id-column 'objects' is not a column of texts or numbers"),
        (lambda d: d, ["--label-column", "nothing"], "--label-column 'nothing' is not a column; the dataset has image (Image)"),
    ],
)
def test_errors(tmp_path, capsys, change, options, message):
    change(hf_dataset(tmp_path / "files")).save_to_disk(str(tmp_path / "saved"))
    assert run(tmp_path / "saved", tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err


def test_names_that_are_not_unique(tmp_path, capsys):
    data = hf_dataset(tmp_path / "files").remove_columns("image_id")
    data.add_column("name", ["a", "b", "a"]).save_to_disk(str(tmp_path / "saved"))
    assert run(tmp_path / "saved", tmp_path / "out") == 1
    assert "split train, column name: rows 0 and 2 are both 'a'; give --id-column row" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "saved", tmp_path / "out", "--id-column", "row") == 0
    assert [row["id"] for row in check_rows(tmp_path / "out", tmp_path / "files")] == [f"train-{k:08d}" for k in range(3)]


def test_what_is_no_dataset(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "out") == 1
    assert "nowhere: no such file or folder; a dataset of the Hub is saved first" in capsys.readouterr().err
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    assert run(tmp_path / "x.parquet", tmp_path / "out") == 1
    assert "x.parquet: datasets cannot read it" in capsys.readouterr().err


def test_an_empty_cell_names_its_row(tmp_path, capsys):
    emptied = hf_dataset(tmp_path / "files").map(lambda row, k: {"annotation": None} if k == 1 else row, with_indices=True)
    emptied.save_to_disk(str(tmp_path / "saved"))
    assert run(tmp_path / "saved", tmp_path / "out") == 1
    assert "row 1, column annotation: empty; remove the row" in capsys.readouterr().err


def write_imagefolder(root, files, rows):
    """Photos and label maps `rows` of the files <k>.jpg and <k>.png, with a metadata.csv that pairs them."""
    (root / "train").mkdir(parents=True, exist_ok=True)
    for k in rows:
        for suffix in (".jpg", ".png"):
            shutil.copy(files / f"{k}{suffix}", root / "train" / f"{k}{suffix}")
    lines = [f"{k}.jpg,{k}.png\n" for k in rows]
    (root / "train" / "metadata.csv").write_text("".join(["file_name,label_map_file_name\n", *lines]))
    (root / "classes.txt").write_text("\n".join(CLASSES))


def test_imagefolder(tmp_path):
    hf_dataset(tmp_path / "files")
    write_imagefolder(tmp_path / "raw", tmp_path / "files", range(3))
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    check_rows(tmp_path / "out", tmp_path / "files")


def save_parquet(root, data, files):
    root.mkdir(exist_ok=True)
    data.select([0, 1]).to_parquet(str(root / "train-0.parquet"))
    data.select([2]).to_parquet(str(root / "train-1.parquet"))


def save_dict(root, data, files):
    import datasets

    shutil.rmtree(root, ignore_errors=True)
    datasets.DatasetDict({"train": data}).save_to_disk(str(root))


def save_imagefolder(root, data, files):
    write_imagefolder(root, files, range(3))


@pytest.mark.parametrize("save", [save_parquet, save_dict, save_imagefolder])
def test_resume_sees_that_the_data_changed(tmp_path, caplog, save):
    caplog.set_level("INFO")
    save(tmp_path / "raw", hf_dataset(tmp_path / "old"), tmp_path / "old")
    assert run(tmp_path / "raw", tmp_path / "out") == 0 == run(tmp_path / "raw", tmp_path / "out", "--resume")
    assert "train: complete, kept as it is" in caplog.text
    save(tmp_path / "raw", hf_dataset(tmp_path / "new", seed=9), tmp_path / "new")
    caplog.clear()
    assert run(tmp_path / "raw", tmp_path / "out", "--resume") == 0
    assert "kept as it is" not in caplog.text
    check_rows(tmp_path / "out", tmp_path / "new")


def test_a_row_has_the_file_that_holds_it(tmp_path):
    data = hf_dataset(tmp_path / "files")
    save_parquet(tmp_path / "raw", data, None)
    source = HfSource(tmp_path / "raw", "train", ClassVocabulary(names=CLASSES), ("image", "annotation"), None)
    assert [Path(file).name for k in range(3) for file in source.files(k)] == ["train-0.parquet", "train-0.parquet", "train-1.parquet"]
    data.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    source = HfSource(tmp_path / "saved", "train", ClassVocabulary(names=CLASSES), ("image", "annotation"), None)
    assert [Path(file).name[:10] for k in range(3) for file in source.files(k)] == ["data-00000", "data-00000", "data-00001"]
