"""COCO captions: both kinds of lists, missing photos, other layouts, and the real captions."""

import argparse
import gzip
import json

import pytest

from data_prep import coco_captions, prepare
from data_prep.source import SourceError
from ofaseg.data.image_text_sources import open_image_text
from ofaseg.data.shards import ShardReader
from tests.data_prep.raw_layouts import raw_coco_captions, write_photo


def arguments(captions="auto"):
    return argparse.Namespace(captions=captions)


def karpathy_entry(k, split, filepath="val2014"):
    sentences = [{"raw": f"picture {k}, {j}", "tokens": ["picture"], "sentid": 10 * k + j} for j in range(3)]
    return {"filename": f"COCO_{filepath}_{k:012d}.jpg", "filepath": filepath, "split": split, "cocoid": k, "sentences": sentences}


def write_karpathy(root, name="dataset_coco.json", filepath="val2014"):
    entries = [karpathy_entry(k, split, filepath) for k, split in enumerate(("test", "train", "val", "restval", "test"))]
    for k in range(5):
        write_photo(root / filepath / f"COCO_{filepath}_{k:012d}.jpg", 4, 7, k)
    (root / name).write_text(json.dumps({"dataset": "coco", "images": entries}))


def test_captions_go_with_their_photos(tmp_path):
    raw_coco_captions(tmp_path)
    assert coco_captions.list_splits(tmp_path, arguments()) == ["train"]
    source = coco_captions.open_split(tmp_path, "train", arguments())
    assert source.vocabulary is None and source.columns == ("image", "id", "captions")
    for k, name in enumerate(("000000000009", "000000000025")):
        sample = source[k]
        assert sample["id"] == name and sample["captions"] == [f"picture {k}, number {j}." for j in range(2)]  # on one line
        assert sample["image"] == (tmp_path / "train2017" / f"{name}.jpg").read_bytes()
    assert source.files(1) == (source.name(1), str(tmp_path / "annotations" / "captions_train2017.json"))


def test_karpathy_splits(tmp_path):
    raw_coco_captions(tmp_path)
    write_karpathy(tmp_path)
    assert coco_captions.list_splits(tmp_path, arguments()) == ["train", "val", "test"]
    found = {split: coco_captions.open_split(tmp_path, split, arguments()) for split in ("train", "val", "test")}
    ids = {split: [int(sample["id"].rpartition("_")[2]) for sample in source] for split, source in found.items()}
    assert ids == {"train": [1, 3], "val": [2], "test": [0, 4]}  # restval belongs to train
    assert found["test"][1]["captions"] == ["picture 4, 0", "picture 4, 1", "picture 4, 2"]
    assert coco_captions.list_splits(tmp_path, arguments("2017")) == ["train"]
    assert len(coco_captions.open_split(tmp_path, "train", arguments("2017"))[0]["captions"]) == 2


def test_the_list_that_is_read_is_named(tmp_path, caplog):
    raw_coco_captions(tmp_path)
    (tmp_path / "annotations" / "captions_train2017.json.gz").write_bytes(gzip.compress(b"not read"))
    with caplog.at_level("INFO"):
        coco_captions.open_split(tmp_path, "train", arguments())
    assert f"{tmp_path}/annotations/captions_train2017.json: captions of 2 photos" in caplog.text


def test_photos_below_images(tmp_path):
    raw_coco_captions(tmp_path / "raw")
    (tmp_path / "raw" / "images").mkdir()
    (tmp_path / "raw" / "train2017").rename(tmp_path / "raw" / "images" / "train2017")
    assert coco_captions.open_split(tmp_path / "raw", "train", arguments())[1]["id"] == "000000000025"


def test_missing_photos_are_named_and_counted(tmp_path, capsys):
    options = ["coco_captions", *raw_coco_captions(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--workers", "1"]
    (tmp_path / "raw" / "train2017" / "000000000009.jpg").unlink()
    assert prepare.main(options) == 1
    error = capsys.readouterr().err
    assert "train2017/000000000009.jpg: photo not found, though" in error and "--on-bad-sample skip" in error
    assert prepare.main([*options, "--on-bad-sample", "skip"]) == 0
    summary = json.loads((tmp_path / "out" / "summary_train.json").read_text())
    assert summary["rows"] == 1 and len(summary["skipped"]) == 1 and "1 bad samples skipped" in capsys.readouterr().out


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no list of captions; expected .*/dataset_coco.json or .*/annotations/captions_train2017"):
        coco_captions.list_splits(tmp_path, arguments())
    raw_coco_captions(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected .*/annotations/captions_train2014.json. Give"):
        coco_captions.list_splits(tmp_path, arguments("2014"))
    (tmp_path / "train2017").rename(tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match=r"no folder of photos; expected .*/images/train2017 or .*/train2017"):
        coco_captions.open_split(tmp_path, "train", arguments())


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not a complete JSON file"),
        ("[]", "needs a JSON object at its top"),
        ('{"images": []}', r"not COCO's caption annotations \(KeyError\('annotations'\)\)"),
        ('{"images": [], "annotations": []}', "lists no photo with a caption"),
    ],
)
def test_other_lists_are_refused(tmp_path, content, message):
    raw_coco_captions(tmp_path)
    (tmp_path / "annotations" / "captions_train2017.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        coco_captions.open_split(tmp_path, "train", arguments())


def test_an_odd_entry_of_karpathys_list_is_named(tmp_path):
    write_karpathy(tmp_path)
    path = tmp_path / "dataset_coco.json"
    entries = json.loads(path.read_text())["images"]
    del entries[4]["sentences"]
    path.write_text(json.dumps({"images": entries}))
    with pytest.raises(SourceError, match=r"images\[4\] is another thing \(KeyError\('sentences'\)\)"):
        coco_captions.open_split(tmp_path, "test", arguments())
    path.write_text("{}")
    with pytest.raises(SourceError, match="no list of images"):
        coco_captions.open_split(tmp_path, "test", arguments())


def test_real_captions(real_data, tmp_path):
    """The pack's photos and captions, through shards; against the JSON read once more."""
    out = tmp_path / "out"
    options = ["--root", str(real_data / "coco_mini"), "--splits", "val", "--out", str(out), "--workers", "1"]
    assert prepare.main(["coco_captions", *options]) == 0
    source = open_image_text(str(out), "valid")
    assert len(source) == len(ShardReader.for_split(out, "val")) == 128
    data = json.loads((real_data / "coco_mini" / "annotations" / "captions_val2017.json").read_text())
    expected = {}
    for entry in data["annotations"]:
        expected.setdefault(f"{entry['image_id']:012d}", []).append(" ".join(entry["caption"].split()))
    entries = [source[i] for i in range(128)]
    assert {entry["image_id"]: list(entry["captions"]) for entry in entries} == expected
    for entry in entries[::16]:
        assert entry["image"] == (real_data / "coco_mini" / "val2017" / f"{entry['image_id']}.jpg").read_bytes()


def test_all_5000_with_few_photos(real_data, tmp_path):
    """The list names 5,000 photos, 128 of which are there: all are entries, and each missing one says so."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json.gz").symlink_to(real_data / "captions" / "captions_val2017.json.gz")
    (tmp_path / "val2017").symlink_to(real_data / "coco_mini" / "val2017")
    source = coco_captions.open_split(tmp_path, "val", arguments())
    missing = 0
    for i in range(len(source)):
        try:
            source[i]
        except FileNotFoundError as error:
            assert "photo not found" in str(error)
            missing += 1
    with gzip.open(real_data / "captions" / "captions_val2017.json.gz") as file:
        total = len(json.load(file)["annotations"])
    assert len(source) == 5000 and missing == 5000 - 128 and sum(len(photo.captions) for photo in source.photos) == total == 25014
