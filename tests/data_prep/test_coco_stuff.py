"""COCO-Stuff: the numbering of the 171 and of the 15 classes, both kinds of label files, and real photos."""

import argparse
import re

import numpy as np
import pytest

from data_prep import coco_stuff, coco_unseen
from data_prep.paired import read_class_names
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data_prep.raw_layouts import row_of, write_pair, write_photo, write_values

UNSEEN_ONE_BASED = (30, 37, 89, 52, 77, 29, 24, 20, 138, 161, 158, 113, 137, 95, 134)
"""The 15 classes as IFSeg's conversion notebook lists them, in the numbering 1..171."""


def arguments(label_files="auto", **more):
    return argparse.Namespace(label_files=label_files, **more)


def write(root, name, values, split="train2017", stem="1"):
    write_pair(root / "images" / split / f"{stem}.jpg", root / "annotations" / split / name, row_of(values))


def test_the_unused_ids_are_closed_up(tmp_path):
    write(tmp_path, "1.png", [0, 10, 12, 24, 26, 27, 30, 89, 91, 181, 255])
    sample = coco_stuff.open_split(tmp_path, "train", arguments())[0]
    assert sample["label_map"][0].tolist() == [0, 10, 11, 23, 24, 25, 26, 79, 80, 170, IGNORE_INDEX]
    names = coco_stuff.vocabulary().names
    assert [names[k] for k in (0, 11, 79, 80, 170)] == ["person", "stop sign", "toothbrush", "banner", "wood"]
    assert sample["image"] == (tmp_path / "images" / "train2017" / "1.jpg").read_bytes()


@pytest.mark.parametrize("value", coco_stuff.UNUSED_IDS)
def test_an_unused_id_is_an_error(tmp_path, value):
    write(tmp_path, "1.png", [0, value])
    with pytest.raises(SourceError, match=f"1.png: label value {value} at x 1, y 0; official pixel maps"):
        coco_stuff.open_split(tmp_path, "train", arguments())[0]


def test_train_ids_are_taken_as_they_are(tmp_path):
    write(tmp_path, "1_labelTrainIds.png", [0, 11, 170, 255], "val2017")
    source = coco_stuff.open_split(tmp_path, "val", arguments())
    assert source[0]["id"] == "1" and source[0]["label_map"][0].tolist() == [0, 11, 170, IGNORE_INDEX]
    write_values(tmp_path / "annotations" / "val2017" / "1_labelTrainIds.png", row_of([0, 171, 2, 3]))
    with pytest.raises(SourceError, match="label value 171 at x 1, y 0; files named _labelTrainIds hold 0..170"):
        source[0]


def test_of_both_kinds_the_official_one_is_read(tmp_path):
    write(tmp_path, "1.png", [12, 255])
    write_values(tmp_path / "annotations" / "train2017" / "1_labelTrainIds.png", row_of([11, 255]))
    for label_files in ("auto", "pixel-maps", "train-ids"):
        source = coco_stuff.open_split(tmp_path, "train", arguments(label_files))
        assert len(source) == 1 and source[0]["label_map"][0].tolist() == [11, IGNORE_INDEX]
        assert source.files(0)[1].endswith("_labelTrainIds.png") == (label_files == "train-ids")


def test_the_unseen_classes_are_those_of_ifseg_in_its_order(tmp_path):
    names = read_class_names("coco_stuff171")
    assert coco_unseen.vocabulary().names == tuple(names[k - 1] for k in UNSEEN_ONE_BASED)
    expected = np.full(171, IGNORE_INDEX)
    expected[np.array(UNSEEN_ONE_BASED) - 1] = np.arange(15)
    np.testing.assert_array_equal(coco_stuff.subset_of_classes(coco_unseen.vocabulary().names), expected)
    assert coco_unseen.vocabulary().thing == tuple(k <= 80 for k in UNSEEN_ONE_BASED)
    write(tmp_path, "1.png", [0, 33, 20, 255])  # person, frisbee (COCO id 34), cow (COCO id 21)
    write(tmp_path, "2.png", [0, 0, 0, 255], stem="2")
    source = coco_unseen.open_split(tmp_path, "train", arguments())
    assert source[0]["label_map"][0].tolist() == [IGNORE_INDEX, 0, 7, IGNORE_INDEX]
    assert len(source) == 2 and (source[1]["label_map"] == IGNORE_INDEX).all()  # photos without labels stay


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of photos; expected .*images/train2017"):
        coco_stuff.open_split(tmp_path, "train", arguments())
    write(tmp_path, "1.png", [0])
    write_photo(tmp_path / "images" / "train2017" / "2.jpg", 4, 1)
    with pytest.raises(SourceError, match="2.jpg: photo without a label map; expected .*annotations/train2017/2.png"):
        coco_stuff.open_split(tmp_path, "train", arguments())
    assert len(coco_stuff.open_split(tmp_path, "train", arguments(on_bad_sample="skip"))) == 2


def plain_words(name):
    return sorted(set(re.split(r"[- ]", name)) - {"other", "stuff"})


def test_names_agree_with_the_official_ids(real_data):
    lines = (real_data / "class_lists" / "coco_stuff182_labels.txt").read_text().splitlines()
    official = {int(number) - 1: name.strip() for number, name in (line.split(":") for line in lines)}
    table, names = coco_stuff.label_table(train_ids=False), coco_stuff.vocabulary().names
    for value in range(182):
        if value not in coco_stuff.UNUSED_IDS:
            assert plain_words(names[table[value]]) == plain_words(official[value])


def test_real_photos(real_data):
    """Every label of the pack's COCO-Stuff samples, against a remap written independently."""
    root = real_data / "coco_stuff_samples"
    for split, count in (("train", 13), ("val", 8)):
        source, unseen = (module.open_split(root, split, arguments()) for module in (coco_stuff, coco_unseen))
        assert len(source) == len(unseen) == count
        for i in range(count):
            stored = codec.decode_stored_labels((root / "labels" / split / f"{source[i]['id']}.png").read_bytes())
            number = {v: k for k, v in enumerate(v for v in range(182) if v not in coco_stuff.UNUSED_IDS)} | {255: IGNORE_INDEX}
            expected = np.vectorize(number.get)(stored)
            np.testing.assert_array_equal(source[i]["label_map"], expected)
            for k, one_based in enumerate(UNSEEN_ONE_BASED):
                np.testing.assert_array_equal(unseen[i]["label_map"] == k, expected == one_based - 1)
