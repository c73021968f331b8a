"""Every data_prep module: raw samples -> shards -> the same samples, in both formats."""

import numpy as np
import pytest

from data_prep import prepare
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader, load_vocabulary
from tests.data_prep.test_camvid import write_raw

SPLIT = "train"


def raw_camvid(root):
    write_raw(root, SPLIT)
    return root, {}


def raw_shapes(root):
    return None, {"num": 3, "seed": 5}


RAW = {"camvid": raw_camvid, "shapes": raw_shapes}
"""Dataset -> function that writes a tiny raw copy below a folder; returns (root, options of iter_samples)."""


def test_every_dataset_has_a_raw_sample():
    assert set(RAW) == set(prepare.DATASETS), "add the new dataset's raw sample to RAW"


@pytest.mark.parametrize("format", ["tsv", "parquet"])
@pytest.mark.parametrize("name", prepare.DATASETS)
def test_round_trip(name, format, tmp_path):
    module = prepare.load_dataset_module(name)
    root, options = RAW[name](tmp_path / "raw")
    prepare.write_split(name, root, tmp_path / "out", SPLIT, format, rows_per_shard=2, options=options)
    vocabulary, reader = load_vocabulary(tmp_path / "out"), ShardReader.for_split(tmp_path / "out", SPLIT)
    expected = module.vocabulary()
    assert (vocabulary.names, vocabulary.palette, vocabulary.thing) == (expected.names, expected.palette, expected.thing)
    samples = list(module.iter_samples(root, SPLIT, **options))
    assert len(reader) == len(samples) > 1
    for i, sample in enumerate(samples):
        row = reader[i]
        assert row["id"] == sample["id"] and set(row) == set(sample)
        image = sample["image"] if isinstance(sample["image"], np.ndarray) else codec.decode_image(sample["image"])
        np.testing.assert_array_equal(codec.decode_image(row["image"]), image)
        if isinstance(sample["image"], bytes):
            assert row["image"] == sample["image"]  # files are kept as they are
        expected = sample["label_map"]
        expected = expected if isinstance(expected, np.ndarray) else codec.decode_label_map(expected, module.vocabulary())
        np.testing.assert_array_equal(codec.decode_label_map(row["label_map"], vocabulary), expected)
        for column in set(row) - {"id", "image", "label_map", "segment_map"}:
            assert row[column] == sample[column]


@pytest.mark.parametrize("name", prepare.DATASETS)
def test_contract(name, tmp_path):
    """Ids are distinct, labels lie in 0..K-1 or are ignored, sizes agree, and a second pass yields the same."""
    module = prepare.load_dataset_module(name)
    root, options = RAW[name](tmp_path / "raw")
    first, second = (list(module.iter_samples(root, SPLIT, **options)) for _ in range(2))
    assert len({s["id"] for s in first}) == len(first)
    vocabulary = module.vocabulary()
    for a, b in zip(first, second):
        row, label_map = prepare.sample_to_row(a, vocabulary)
        assert label_map.shape == codec.image_size(row["image"]) and -1 <= label_map.min() and label_map.max() < len(vocabulary)
        assert row == prepare.sample_to_row(b, vocabulary)[0]


def test_a_wrong_remap_fails(tmp_path, monkeypatch):
    """Labels shifted by one do not pass unseen: the range check stops them."""
    module = prepare.load_dataset_module("camvid")
    root, _ = RAW["camvid"](tmp_path / "raw")
    right = module.iter_samples

    def shifted(root, split):
        for sample in right(root, split):
            yield sample | {"label_map": np.where(sample["label_map"] >= 0, sample["label_map"] + 1, -1)}

    monkeypatch.setattr(module, "iter_samples", shifted)
    with pytest.raises(prepare.PrepareError, match="sample 'b_2': label map holds -1..11; allowed are 0..10 and -1"):
        prepare.write_split("camvid", root, tmp_path / "out", SPLIT, "tsv")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_real_frames(real_data, tmp_path):
    """All validation frames of CamVid: both formats hold the same rows, photos byte for byte, every label in place."""
    module, root = prepare.load_dataset_module("camvid"), real_data / "camvid"
    for format in ("tsv", "parquet"):
        assert prepare.write_split("camvid", root, tmp_path / format, "val", format)["num_rows"] == 101
    readers = [ShardReader.for_split(tmp_path / format, "val") for format in ("tsv", "parquet")]
    for i, sample in enumerate(module.iter_samples(root, "val")):
        row = readers[0][i]
        assert row == readers[1][i] and (row["id"], row["image"]) == (sample["id"], sample["image"])
        np.testing.assert_array_equal(codec.decode_label_map(row["label_map"], module.vocabulary()), sample["label_map"])
