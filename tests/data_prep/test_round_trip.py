"""Every data_prep module: raw samples -> shards -> the same samples, in both formats."""

import pickle

import numpy as np
import pytest

from data_prep import prepare
from data_prep.camvid import CamVidSource
from data_prep.shard_work import sample_to_row
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader, load_vocabulary
from tests.data_prep import raw_layouts, raw_segments
from tests.data_prep.test_camvid import write_raw

SPLIT = "train"


def raw_camvid(root):
    write_raw(root, SPLIT)
    return ["--root", str(root)]


def raw_shapes(root):
    return ["--num", "3", "--seed", "5"]


RAW = {"camvid": raw_camvid, "shapes": raw_shapes, **raw_layouts.RAW, **raw_segments.RAW}
"""Dataset -> function that writes a tiny raw copy with split `SPLIT` below a folder and returns the options that read it."""


def open_raw(name, folder):
    """(options, source) of a tiny raw copy below `folder`."""
    options = [name, *RAW[name](folder / "raw"), "--splits", SPLIT, "--out", str(folder / "out")]
    return options, prepare.open_splits(prepare.load_dataset_module(name), prepare.parse_arguments(options))[SPLIT]


def test_every_dataset_has_a_raw_sample():
    assert set(RAW) == set(prepare.DATASETS), "add the new dataset's raw sample to RAW"


@pytest.mark.parametrize("format", ["tsv", "parquet"])
@pytest.mark.parametrize("name", prepare.DATASETS)
def test_round_trip(name, format, tmp_path):
    options, source = open_raw(name, tmp_path)
    assert prepare.main([*options, "--format", format, "--rows-per-shard", "2", "--workers", "1"]) == 0
    vocabulary, reader = load_vocabulary(tmp_path / "out"), ShardReader.for_split(tmp_path / "out", SPLIT)
    expected = source.vocabulary
    assert (vocabulary is None) == (expected is None) == ("label_map" not in source.columns)
    if expected is not None:
        assert (vocabulary.names, vocabulary.palette, vocabulary.thing) == (expected.names, expected.palette, expected.thing)
    assert len(reader) == len(source) > 1
    for i, sample in enumerate(source):
        row = reader[i]
        assert row["id"] == sample["id"] and set(row) == set(sample)
        image = sample["image"] if isinstance(sample["image"], np.ndarray) else codec.decode_image(sample["image"])
        np.testing.assert_array_equal(codec.decode_image(row["image"]), image)
        if isinstance(sample["image"], bytes):
            assert row["image"] == sample["image"]  # files are kept as they are
        for column in set(row) - {"id", "image", "label_map", "segment_map"}:
            assert row[column] == sample[column]
        if vocabulary is None:  # a dataset without label maps
            assert row["captions"]
            continue
        expected = sample["label_map"]
        expected = expected if isinstance(expected, np.ndarray) else codec.decode_label_map(expected, source.vocabulary)
        np.testing.assert_array_equal(codec.decode_label_map(row["label_map"], vocabulary), expected)


@pytest.mark.parametrize("name", prepare.DATASETS)
def test_contract(name, tmp_path):
    """Ids are distinct, labels lie in 0..K-1 or are ignored, sizes agree, and a copy sent to another process yields the same."""
    _, source = open_raw(name, tmp_path)
    first, second = list(source), list(pickle.loads(pickle.dumps(source)))
    assert len({s["id"] for s in first}) == len(first) == len(source)
    assert len({source.name(i) for i in range(len(source))}) == len(source)
    vocabulary = source.vocabulary
    for a, b in zip(first, second, strict=True):
        row, label_map = sample_to_row(a, vocabulary)
        assert (label_map is None) == (vocabulary is None)
        if label_map is not None:
            assert label_map.shape == codec.image_size(row["image"]) and -1 <= label_map.min() and label_map.max() < len(vocabulary)
        assert row == sample_to_row(b, vocabulary)[0]


def test_a_wrong_remap_fails(tmp_path, monkeypatch, capsys):
    """Labels shifted by one do not pass unseen: the range check stops them."""
    options, source = open_raw("camvid", tmp_path)
    right = type(source).__getitem__

    def shifted(self, i):
        sample = right(self, i)
        return sample | {"label_map": np.where(sample["label_map"] >= 0, sample["label_map"] + 1, -1)}

    monkeypatch.setattr(type(source), "__getitem__", shifted)
    assert prepare.main([*options]) == 1
    assert "b_2.jpg: label map holds -1..11; allowed are 0..10 and -1" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_real_frames(real_data, tmp_path):
    """All validation frames of CamVid: both formats hold the same rows, photos byte for byte, every label in place."""
    root = real_data / "camvid"
    for format in ("tsv", "parquet"):
        options = ["--root", str(root), "--splits", "val", "--out", str(tmp_path / format), "--format", format]
        assert prepare.main(["camvid", *options]) == 0
    readers = [ShardReader.for_split(tmp_path / format, "val") for format in ("tsv", "parquet")]
    assert [len(reader) for reader in readers] == [101, 101]
    source = CamVidSource(root, "val")
    for i, sample in enumerate(source):
        row = readers[0][i]
        assert row == readers[1][i] and (row["id"], row["image"]) == (sample["id"], sample["image"])
        np.testing.assert_array_equal(codec.decode_label_map(row["label_map"], source.vocabulary), sample["label_map"])
