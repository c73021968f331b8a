"""ADE20K: both numberings, and that one read as the other does not pass unseen."""

import argparse

import numpy as np
import pytest

from data_prep import ade20k
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data_prep.raw_layouts import row_of, write_pair


def open_one(root, values, zero_based=False):
    write_pair(root / "images" / "validation" / "a.jpg", root / "annotations" / "validation" / "a.png", row_of(values))
    return ade20k.open_split(root, "val", argparse.Namespace(zero_based=zero_based))


def test_the_release_starts_at_one(tmp_path):
    source = open_one(tmp_path, [0, 1, 2, 150])
    assert source[0]["label_map"][0].tolist() == [IGNORE_INDEX, 0, 1, 149] and source[0]["id"] == "a"
    assert [source.vocabulary.names[k] for k in (0, 1, 149)] == ["wall", "building", "flag"]


def test_zero_based_copies(tmp_path):
    source = open_one(tmp_path, [0, 149, 150, 255], zero_based=True)
    assert source[0]["label_map"][0].tolist() == [0, 149, IGNORE_INDEX, IGNORE_INDEX]


@pytest.mark.parametrize(
    "value, zero_based, message", [(255, False, "read those with --zero-based"), (151, False, "holds 0"), (151, True, "0..149")]
)
def test_values_of_the_other_kind_are_errors(tmp_path, value, zero_based, message):
    with pytest.raises(SourceError, match=f"a.png: label value {value} at x 1, y 0; .*{message}"):
        open_one(tmp_path, [1, value], zero_based)[0]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected .*images/training"):
        ade20k.open_split(tmp_path, "train", argparse.Namespace(zero_based=False))


def test_real_photos(real_data, tmp_path):
    for kind, raw in (("images", "images"), ("annotations", "labels")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "validation").symlink_to(real_data / "ade20k_samples" / raw)
    source = ade20k.open_split(tmp_path, "val", argparse.Namespace(zero_based=False))
    assert len(source) == 4
    listed = (real_data / "class_lists" / "ade150.txt").read_text().split("\n")
    for sample in source:
        stored = codec.decode_stored_labels((real_data / "ade20k_samples" / "labels" / f"{sample['id']}.png").read_bytes())
        np.testing.assert_array_equal(sample["label_map"] + 1, stored)  # 0 (other) becomes no label, -1
        for value in np.unique(stored[stored > 0]):
            assert source.vocabulary.names[value - 1] == listed[value - 1]
