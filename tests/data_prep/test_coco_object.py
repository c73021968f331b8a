"""COCO-Object: 80 things and background from pixel maps, from converted maps and from instances; real photos of each."""

import argparse
import json

import numpy as np
import pytest

from data_prep import coco_object, coco_stuff, prepare
from data_prep.paired import read_class_names
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data_prep.raw_layouts import row_of, write_pair, write_photo

ABSENT_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""COCO's category ids 1..90 that have no class."""


def open_object(root, split="train", label_files="auto", **more):
    return coco_object.open_split(root, split, argparse.Namespace(label_files=label_files, **more))


def write(root, name, values, split="train2017", stem="1"):
    write_pair(root / "images" / split / f"{stem}.jpg", root / "annotations" / split / name, row_of(values))


def test_names_are_background_and_the_things():
    vocabulary = coco_object.vocabulary()
    assert vocabulary.names == ("background", *read_class_names("coco_stuff171")[:80])
    assert vocabulary.thing == (False,) + (True,) * 80
    assert [vocabulary.names[k] for k in (1, 63, 79, 80)] == ["person", "tv", "hair drier", "toothbrush"]


def test_stuff_and_unlabelled_pixels_are_background(tmp_path):
    write(tmp_path, "1.png", [0, 10, 12, 24, 26, 89, 91, 181, 255])
    sample = open_object(tmp_path)[0]
    assert sample["label_map"][0].tolist() == [1, 11, 12, 24, 25, 80, 0, 0, 0] and sample["id"] == "1"


@pytest.mark.parametrize("value", coco_stuff.UNUSED_IDS)
def test_an_unused_id_is_an_error(tmp_path, value):
    write(tmp_path, "1.png", [0, value])
    with pytest.raises(SourceError, match=f"1.png: label value {value} at x 1, y 0; official pixel maps"):
        open_object(tmp_path)[0]


def test_converted_maps_have_to_be_told_apart(tmp_path):
    write(tmp_path, "1_labelTrainIds.png", [0, 1, 79, 80, 170, 255], "val2017")
    with pytest.raises(SourceError, match="1_labelTrainIds.png: .* choose --label-files train-ids for .*, object-ids for"):
        open_object(tmp_path, "val")
    sample = open_object(tmp_path, "val", "train-ids")[0]
    assert sample["id"] == "1" and sample["label_map"][0].tolist() == [1, 2, 80, 0, 0, 0]
    with pytest.raises(SourceError, match="label value 170 at x 4, y 0; object ids are 0..80"):
        open_object(tmp_path, "val", "object-ids")[0]
    write(tmp_path, "1_labelTrainIds.png", [0, 1, 80], "val2017")
    sample = open_object(tmp_path, "val", "object-ids")[0]
    assert sample["id"] == "1" and sample["label_map"][0].tolist() == [0, 1, 80]
    write(tmp_path, "1.png", [255, 0, 89], "val2017")  # the official map beside it
    for label_files, expected in (("auto", [0, 1, 80]), ("pixel-maps", [0, 1, 80]), ("object-ids", [0, 1, 80])):
        source = open_object(tmp_path, "val", label_files)
        assert len(source) == 1 and source[0]["label_map"][0].tolist() == expected


def write_instances(root, annotations, categories=({"id": 90, "name": "toothbrush"},), split="train2017", names=("a", "b")):
    images = [{"id": 10 + k, "file_name": f"{name}.jpg", "height": 6, "width": 9} for k, name in enumerate(names)]
    for k, name in enumerate(names):
        write_photo(root / split / f"{name}.jpg", 6, 9, k)
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": list(categories)}))
    return root


def columns(x0, x1, category_id, image_id=10, **more):
    """An annotation of the columns x0..x1-1 of the photo."""
    counts = [6 * x0, 6 * (x1 - x0), 6 * (9 - x1)]
    return {"image_id": image_id, "category_id": category_id, "segmentation": {"size": [6, 9], "counts": counts}, **more}


def test_instances_are_drawn_by_decreasing_area(tmp_path):
    annotations = [
        columns(2, 4, 90, area=12),
        columns(0, 6, 1, area=36, iscrowd=0),
        columns(3, 5, 13, area=11.5),
        columns(5, 8, 2, iscrowd=1, area=18),  # crowds lie below objects
        columns(0, 9, 3, image_id=99),  # of no photo
    ]
    root = write_instances(tmp_path, annotations)
    source = open_object(root)
    assert [sample["id"] for sample in source] == ["a", "b"]
    assert source[0]["label_map"][0].tolist() == [1, 1, 80, 12, 12, 1, IGNORE_INDEX, IGNORE_INDEX, 0]
    assert (source[1]["label_map"] == 0).all() and source[1]["label_map"].shape == (6, 9)
    for annotation in annotations:
        annotation.pop("area", None)  # then the areas are counted, here with a tie
    assert open_object(write_instances(tmp_path, annotations))[0]["label_map"][0].tolist()[:6] == [1, 1, 80, 12, 12, 1]


def test_a_folder_of_label_maps_goes_before_instances(tmp_path):
    write_instances(tmp_path, [])
    for name in "ab":
        write_pair(tmp_path / "train2017" / f"{name}.jpg", tmp_path / "stuffthingmaps" / "train2017" / f"{name}.png", row_of([89]))
    assert open_object(tmp_path)[0]["label_map"][0, 0] == 80
    write_instances(tmp_path, [])
    assert open_object(tmp_path, label_files="instances")[0]["label_map"][0, 0] == 0


@pytest.mark.parametrize("category", [{"id": 12, "name": "stop sign"}, {"id": 1, "name": "bicycle"}, {"id": 91, "name": "banner"}, 5])
def test_other_categories_are_refused(tmp_path, category):
    write_instances(tmp_path, [], [category])
    with pytest.raises(SourceError, match="instances_train2017.json: category .* is not .*; is this the file of another dataset"):
        open_object(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"category_id": 12}, r"annotation 0 \(of a.jpg\): category_id 12 is none of COCO's 80"),
        ({"category_id": None}, "category_id is None, not a number"),
        ({"segmentation": {"size": [9, 6], "counts": [54]}}, r"run lengths of size \[9, 6\]"),
    ],
)
def test_a_bad_annotation_costs_its_photo_alone(tmp_path, change, message):
    source = open_object(write_instances(tmp_path, [columns(0, 2, 1) | change, columns(0, 2, 1, image_id=11)]))
    with pytest.raises(SourceError, match=f"instances_train2017.json, .*{message}"):
        source[0]
    assert source[1]["label_map"].sum() == 12


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of photos; expected .*images/train2017"):
        open_object(tmp_path)
    (tmp_path / "train2017").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder of label maps; expected .*annotations/train2017"):
        open_object(tmp_path)
    with pytest.raises(FileNotFoundError, match="instances_train2017.json: annotations not found"):
        open_object(tmp_path, label_files="instances")
    write_instances(tmp_path, [], names=())
    with pytest.raises(SourceError, match="instances_train2017.json: no photo of this split"):
        open_object(tmp_path)
    for key, value in (("height", None), ("width", 0), ("id", "x"), ("file_name", 3), ("height", 10**9)):
        write_instances(tmp_path, [])
        path = tmp_path / "annotations" / "instances_train2017.json"
        data = json.loads(path.read_text())
        data["images"][1][key] = value
        path.write_text(json.dumps(data))
        with pytest.raises(SourceError, match=r"instances_train2017.json, images\[1\]: .*; correct the record"):
            open_object(tmp_path)


def test_a_file_that_changed_is_named(tmp_path):
    source = open_object(write_instances(tmp_path, [columns(0, 2, 1)]))
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(" " * 50 + path.read_text())
    with pytest.raises(SourceError, match="annotation 0 .*: the file changed while it was read"):
        source[0]


def test_real_pixel_maps(real_data):
    """Every COCO-Stuff sample of the pack, by the rule written out value by value."""
    root = real_data / "coco_stuff_samples"
    number = {v - 1: k for k, v in enumerate((v for v in range(1, 91) if v not in ABSENT_IDS), start=1)}
    number |= {v: 0 for v in [*range(91, 182), 255]}
    assert len(set(number.values())) == 81
    seen = set()
    for split, count in (("train", 13), ("val", 8)):
        source = open_object(root, split)
        assert len(source) == count
        for sample in source:
            stored = codec.decode_stored_labels((root / "labels" / split / f"{sample['id']}.png").read_bytes())
            np.testing.assert_array_equal(sample["label_map"], np.vectorize(number.get)(stored))
            seen |= set(np.unique(sample["label_map"]).tolist())
    assert 0 in seen and len(seen) > 20


def coco_mini(real_data, root):
    """The pack's COCO photos and instances alone, without a folder of label maps."""
    for name in ("annotations", "train2017", "val2017"):
        (root / name).symlink_to(real_data / "coco_mini" / name)
    return root


def test_real_instances(real_data, tmp_path):
    """The pack's own drawings of the 258 photos hold the same pixels: every class, crowd and border, in both splits."""
    pytest.importorskip("pycocotools")
    root, photos = coco_mini(real_data, tmp_path), 0
    for split in coco_object.SPLITS:
        source = open_object(root, split)
        for i in range(0, len(source), 3):
            sample = source[i]
            path = real_data / "coco_mini" / "semseg80" / f"{split}2017" / f"{sample['id']}.png"
            stored = codec.decode_stored_labels(path.read_bytes()).astype(int)
            np.testing.assert_array_equal(sample["label_map"], np.where(stored == 255, IGNORE_INDEX, stored))
            photos += 1
    assert photos == 44 + 43
    names = (real_data / "coco_mini" / "classes.txt").read_text().splitlines()
    assert list(coco_object.vocabulary().names[1:]) == [name.strip() for name in names]


def test_both_kinds_of_labels_agree_on_a_real_photo(real_data, tmp_path):
    """The photo that the pack has with a pixel map and with instances: one class per object, other outlines."""
    pytest.importorskip("pycocotools")
    maps, instances = open_object(real_data / "coco_stuff_samples", "val"), open_object(coco_mini(real_data, tmp_path), "val")
    of_map, of_instances = ({s["id"]: s["label_map"] for s in source if s["id"] == "000000000139"} for source in (maps, instances))
    a, b = of_map["000000000139"], of_instances["000000000139"]
    assert (a == b).mean() > 0.95
    for k in (1, 63):  # person, tv
        assert ((a == k) & (b == k)).sum() > 0.8 * (a == k).sum() > 0


@pytest.mark.slow
def test_shards_from_real_instances(real_data, tmp_path):
    """The command over all photos, in two processes, against the pack's drawings."""
    root = coco_mini(real_data, tmp_path)
    assert (
        prepare.main(["coco_object", "--root", str(root), "--out", str(tmp_path / "out"), "--workers", "2", "--rows-per-shard", "40"]) == 0
    )
    vocabulary = load_vocabulary(tmp_path / "out")
    for split, count in (("train", 130), ("val", 128)):
        with ShardReader.for_split(tmp_path / "out", split) as reader:
            assert len(reader) == count
            for i in range(count):
                row = reader[i]
                path = real_data / "coco_mini" / "semseg80" / f"{split}2017" / f"{row['id']}.png"
                stored = codec.decode_stored_labels(path.read_bytes()).astype(int)
                label_map = codec.decode_label_map(row["label_map"], vocabulary)
                np.testing.assert_array_equal(label_map, np.where(stored == 255, IGNORE_INDEX, stored))
