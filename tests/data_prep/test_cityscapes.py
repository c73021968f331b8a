"""Cityscapes: label ids to train ids, both kinds of label files, names with endings."""

import argparse

import pytest

from data_prep import cityscapes
from data_prep.source import SourceError
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data_prep.raw_layouts import row_of, write_pair, write_values

STEM = "ulm_000000_000019"


def open_one(root, values, kind="labelIds", label_files="auto"):
    write_pair(photo(root), label_map(root, kind), row_of(values))
    return cityscapes.open_split(root, "train", argparse.Namespace(label_files=label_files))


def photo(root):
    return root / "leftImg8bit" / "train" / "ulm" / f"{STEM}_leftImg8bit.png"


def label_map(root, kind):
    return root / "gtFine" / "train" / "ulm" / f"{STEM}_gtFine_{kind}.png"


def test_label_ids(tmp_path):
    source = open_one(tmp_path, [0, 6, 7, 8, 24, 26, 33, 255])
    sample = source[0]
    assert sample["id"] == f"ulm/{STEM}" and sample["image"] == photo(tmp_path).read_bytes()
    assert sample["label_map"][0].tolist() == [IGNORE_INDEX, IGNORE_INDEX, 0, 1, 11, 13, 18, IGNORE_INDEX]
    names, colours = source.vocabulary.names, source.vocabulary.palette
    assert [names[k] for k in (0, 1, 11, 13, 18)] == ["road", "sidewalk", "person", "car", "bicycle"]
    assert colours[names.index("car")] == (0, 0, 142) and source.vocabulary.thing.index(True) == 11


def test_train_ids_where_there_are_no_label_ids(tmp_path):
    source = open_one(tmp_path, [0, 18, 255], "labelTrainIds")
    assert source[0]["label_map"][0].tolist() == [0, 18, IGNORE_INDEX]
    write_values(label_map(tmp_path, "labelTrainIds"), row_of([0, 19, 255]))
    with pytest.raises(SourceError, match="label value 19 at x 1, y 0; labelTrainIds files hold 0..18"):
        source[0]


def test_of_both_kinds_one_is_chosen(tmp_path):
    write_values(label_map(tmp_path, "labelTrainIds"), row_of([5]))
    write_values(label_map(tmp_path, "color"), row_of([5]))
    assert open_one(tmp_path, [7])[0]["label_map"][0, 0] == 0
    assert open_one(tmp_path, [7], label_files="train-ids")[0]["label_map"][0, 0] == 5


def test_a_value_outside_is_named(tmp_path):
    with pytest.raises(SourceError, match="labelIds.png: label value 34 at x 0, y 0; labelIds files hold 0..33"):
        open_one(tmp_path, [34])[0]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected .*leftImg8bit/train"):
        cityscapes.open_split(tmp_path, "train", argparse.Namespace(label_files="auto"))
    with pytest.raises(SourceError, match="_gtFine_labelIds.png: label map without a photo"):
        write_values(label_map(tmp_path, "labelIds").with_name("x_gtFine_labelIds.png"), row_of([7]))
        open_one(tmp_path, [7])


def test_names_agree_with_the_published_list(real_data):
    listed = (real_data / "class_lists" / "cityscapes19.txt").read_text().split("\n")
    assert list(cityscapes.vocabulary().names) == [name for name in listed if name]
