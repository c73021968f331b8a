"""Base and novel classes of COCO-Stuff, VOC and ADE20K, and the segments of FreeSeg's training."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep import coco_zero_shot, prepare, voc_zero_shot
from data_prep.paired import read_class_names
from data_prep.source import SourceError
from ofaseg.utils.run_lengths import mask_of_text
from tests.data_prep import raw_layouts, raw_segments
from tests.data_prep.raw_segments import change_json, segment_map

NONE = -1


def open_raw(name, root, *options):
    args = prepare.parse_arguments([name, "--root", str(root), "--out", "out", *options])
    return prepare.load_dataset_module(name).open_split(root, "train", args)


def names_of(source, label_map):
    return [NONE if k == NONE else source.vocabulary.names[k] for k in label_map[0].tolist()]


def test_coco_stuff_classes(tmp_path):
    raw_segments.raw_coco_zero_shot(tmp_path)
    source = open_raw("coco_zero_shot", tmp_path)
    vocabulary = source.vocabulary
    assert (len(vocabulary), sum(vocabulary.novel), sum(vocabulary.thing)) == (171, 15, 80) and source.columns[-1] == "id"
    indices = [k for k, novel in enumerate(vocabulary.novel) if novel]
    assert indices == [19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160]
    assert [vocabulary.extra["category_ids"][k] - 1 for k in indices] == [20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171]
    assert names_of(source, source[0]["label_map"]) == ["cow", "cow", "cat", "cat", "river", "river", "grass", "window-other", NONE]
    base = open_raw("coco_zero_shot", tmp_path, "--classes", "base")
    assert len(base.vocabulary) == 156 and sum(base.vocabulary.thing) == 73
    assert names_of(base, base[0]["label_map"]) == [NONE, NONE, "cat", "cat", NONE, NONE, NONE, "window-other", NONE]
    assert base[0]["label_map"].max() == 154 and base.vocabulary.names[155] == "wood"


def test_the_split_is_that_of_other_papers(real_data):
    splits = json.loads((real_data / "splits" / "zero_shot_splits.json").read_text())
    assert set(coco_zero_shot.NOVEL) == {entry["name"] for entry in splits["coco_stuff"]["unseen"]}
    assert list(voc_zero_shot.NOVEL) == splits["voc2012"]["unseen"]
    assert list(voc_zero_shot.vocabulary("base").names) == splits["voc2012"]["seen"]
    verbatim = read_class_names("verbatim/coco_stuff171")
    lines = (real_data / "class_lists" / "coco_stuff182_labels.txt").read_text().splitlines()
    assert [name for name in (line.split(": ", 1)[1] for line in lines) if name in verbatim] == list(verbatim)


def test_segments_of_the_training(tmp_path):
    """Panoptic segments of the classes kept; over them stuff of the pixel map that they lack, under the published numbers."""
    raw_segments.raw_coco_zero_shot(tmp_path)
    source = open_raw("coco_zero_shot", tmp_path, "--with-segments")
    sample, ids = source[0], segment_map(0)
    river, grass, window = (v * 65793 for v in (147, 123, 180))
    expected = np.where(np.isin(ids, [5, 300]), ids, 0)  # cat and cow; sky-other-merged and grass-merged are none of the classes
    expected[:, 4:6], expected[:, 6], expected[:, 7] = river, grass, window
    np.testing.assert_array_equal(sample["segment_map"], expected)
    found = {s["id"]: source.vocabulary.names[s["class_id"]] for s in sample["segments"]}
    assert found == {5: "cat", river: "river", grass: "grass", window: "window-other"}  # the cow lies below grass and window
    for s in sample["segments"]:
        ys, xs = np.nonzero(expected == s["id"])
        assert (s["area"], s["box"]) == (len(ys), [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def test_segments_of_the_base_classes_without_entries_for_stuff(tmp_path):
    raw_segments.raw_coco_zero_shot(tmp_path)
    options = ["--with-segments", "--classes", "base", "--stuff-segments", "unlisted"]
    sample, ids = open_raw("coco_zero_shot", tmp_path, *options)[1], segment_map(1)
    expected = np.where(ids == 5, ids, 0)  # without the cow, river and grass
    expected[:, 7] = 0  # the window is painted, but belongs to no segment
    np.testing.assert_array_equal(sample["segment_map"], expected)
    assert [s["id"] for s in sample["segments"]] == [5]


def test_stuff_that_the_panoptic_file_lists_is_not_painted(tmp_path):
    raw_segments.raw_coco_zero_shot(tmp_path)

    def as_river(content):
        for record in content["annotations"]:
            record["segments_info"][0]["category_id"] = 148

    change_json(tmp_path / "annotations" / "panoptic_train2017.json", as_river)
    sample = open_raw("coco_zero_shot", tmp_path, "--with-segments")[0]
    assert 147 * 65793 not in sample["segment_map"] and 70000 in sample["segment_map"]


def test_a_photo_that_the_panoptic_file_lacks(tmp_path):
    raw_segments.raw_coco_zero_shot(tmp_path)
    change_json(tmp_path / "annotations" / "panoptic_train2017.json", lambda content: content["images"].pop(0))
    with pytest.raises(SourceError, match="000000000012.*not in the list 'images'"):
        open_raw("coco_zero_shot", tmp_path, "--with-segments")[0]
    (tmp_path / "annotations" / "panoptic_train2017.json").unlink()
    with pytest.raises(FileNotFoundError, match="panoptic_train2017.json"):
        open_raw("coco_zero_shot", tmp_path, "--with-segments")


def test_voc(tmp_path):
    raw_layouts.raw_pascal_voc(tmp_path)
    source = open_raw("voc_zero_shot", tmp_path)
    assert [name for name, novel in zip(source.vocabulary.names, source.vocabulary.novel) if novel] == list(source.vocabulary.names[15:])
    assert source.vocabulary.names[15:] == ("pottedplant", "sheep", "sofa", "train", "tvmonitor")
    assert names_of(source, source[0]["label_map"]) == [NONE, "aeroplane", "tvmonitor", NONE, "bottle"]
    base, novel = (open_raw("voc_zero_shot", tmp_path, "--classes", kept) for kept in ("base", "novel"))
    assert names_of(base, base[0]["label_map"]) == [NONE, "aeroplane", NONE, NONE, "bottle"] and len(base.vocabulary) == 15
    assert names_of(novel, novel[0]["label_map"]) == [NONE, NONE, "tvmonitor", NONE, NONE] and len(novel.vocabulary) == 5
    assert source.vocabulary.palette[:15] == base.vocabulary.palette and source.vocabulary.palette[15:] == novel.vocabulary.palette


def test_ade20k(tmp_path):
    raw_segments.raw_ade20k_panoptic(tmp_path)
    source = open_raw("ade20k_panoptic", tmp_path)
    assert (len(source.vocabulary), sum(source.vocabulary.thing), sum(source.vocabulary.novel)) == (150, 100, 15)
    sample = source[1]
    assert names_of(source, sample["label_map"]) == ["wall", "sky", "grass", "bed", "window", NONE]
    expected = raw_layouts.row_of([1, 2, 3, 0, 0, 0], 6).astype(int)  # stuff first, then objects by their numbers 2, 3, 8
    expected[0:3, 4], expected[2:5, 5], expected[1:5, 3] = 4, 5, 6
    np.testing.assert_array_equal(sample["segment_map"], expected)
    names = [source.vocabulary.names[s["class_id"]] for s in sample["segments"]]
    assert names == ["wall", "sky", "grass", "window", "flag", "bed"]
    assert [source.vocabulary.names[e["class_id"]] for e in sample["instances"]] == ["window", "flag", "bed"]
    for entry in sample["instances"]:
        np.testing.assert_array_equal(mask_of_text(entry["mask"], 6, 6), expected == entry["id"])
    base = open_raw("ade20k_panoptic", tmp_path, "--classes", "base")
    assert len(base.vocabulary) == 135 and sum(base.vocabulary.thing) == 89
    assert [base.vocabulary.names[s["class_id"]] for s in base[1]["segments"]] == ["wall", "sky", "window", "bed"]  # no grass, no flag


def two_kinds(pixels):
    pixels[1, 3, 0] = 3


def unknown_kind(pixels):
    pixels[2:5, 5, 0] = 101


@pytest.mark.parametrize(
    "change, numbers", [(two_kinds, r"object 7 has the thing numbers \[1, 3\]"), (unknown_kind, r"object 3 .*\[101\]")]
)
def test_damaged_object_maps(tmp_path, change, numbers):
    raw_segments.raw_ade20k_panoptic(tmp_path)
    path = tmp_path / "annotations_instance" / "training" / "ADE_train_00000000.png"
    pixels = np.array(Image.open(path))
    change(pixels)
    Image.fromarray(pixels).save(path)
    with pytest.raises(SourceError, match=f"ADE_train_00000000.png: {numbers}, expected one of 1..100"):
        open_raw("ade20k_panoptic", tmp_path)[0]


def test_object_maps_of_another_kind(tmp_path):
    raw_segments.raw_ade20k_panoptic(tmp_path)
    path = tmp_path / "annotations_instance" / "training" / "ADE_train_00000000.png"
    source = open_raw("ade20k_panoptic", tmp_path)
    Image.fromarray(np.zeros((6, 6), dtype=np.uint8)).save(path)
    with pytest.raises(SourceError, match="L instead of an RGB PNG"):
        source[0]
    Image.fromarray(np.zeros((6, 7, 3), dtype=np.uint8)).save(path)
    with pytest.raises(SourceError, match="pair the files again"):
        source[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="object map not found"):
        source[0]
