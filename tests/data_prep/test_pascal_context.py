"""PASCAL Context: maps of 60 classes and the JSON of PASCAL in Detail say the same, and other numberings are refused."""

import argparse
import json
import pickle

import numpy as np
import pytest

from data_prep import pascal_context, prepare
from data_prep.paired import read_class_names
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data_prep.raw_layouts import raw_pascal_context, row_of, write_lines, write_pair, write_photo, write_values

HEIGHT, WIDTH = 6, 9


def open_context(root, split="train", label_files="auto", no_background=False, **more):
    return pascal_context.open_split(root, split, argparse.Namespace(label_files=label_files, no_background=no_background, **more))


def rectangle(y0, x0, y1, x1):
    """Run lengths down the columns of a rectangle, written by hand."""
    counts = [x0 * HEIGHT + y0]
    for _ in range(x1 - x0):
        counts += [y1 - y0, HEIGHT - (y1 - y0)]
    counts[-1] = HEIGHT * WIDTH - sum(counts[:-1])
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def record(number, image_id, category_id, *box):
    parts = [{"part_id": 100, "segmentation": rectangle(0, 0, 1, 1)}]
    return {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": rectangle(*box), "iscrowd": 0, "parts": parts}


def write_json(root, annotations=None, phases=("train", "val", "train")):
    """VOC2010 with three photos, out of order, whose annotations are mixed; the JSON has every key that the release has."""
    stems = ("2008_000003", "2008_000007", "2008_000002")
    images = []
    for stem, phase in zip(stems, phases, strict=True):
        write_photo(root / "JPEGImages" / f"{stem}.jpg", HEIGHT, WIDTH)
        image_id = int(stem.replace("_", ""))
        images.append(
            {"file_name": f"{stem}.jpg", "phase": phase, "width": WIDTH, "height": HEIGHT, "date_captured": "", "image_id": image_id}
        )
    if annotations is None:
        annotations = [
            record(1, 2008000002, 258, 0, 0, 6, 5),
            record(2, 2008000003, 2, 1, 2, 4, 7),
            record(3, 2008000002, 458, 2, 3, 5, 8),  # drawn later, lies on top
            record(4, 2008000007, 9, 0, 0, 1, 1),
            record(5, 2008000002, 0, 3, 4, 4, 6),  # 0 is drawn too
        ]
    categories = [{"category_id": 2, "name": "aeroplane", "supercategory": "object", "onlysemantic": 0, "parts": []}]
    others = {"info": {}, "annos_occlusion": [{"image_id": 2008000002}], "annos_boundary": [], "parts": [{"part_id": 100}]}
    data = {"images": images, "categories": categories, "annos_segmentation": annotations, **others}
    (root / "trainval_merged.json").write_text(json.dumps(data))
    return root


def expected_map():
    label_map = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    label_map[0:6, 0:5] = pascal_context.CATEGORY_IDS.index(258)
    label_map[2:5, 3:8] = 59
    label_map[3:4, 4:6] = 0
    return label_map


def test_the_json_is_drawn_in_file_order(tmp_path):
    source = open_context(write_json(tmp_path))
    assert [sample["id"] for sample in source] == ["2008_000002", "2008_000003"]  # by name, and of this phase alone
    np.testing.assert_array_equal(source[0]["label_map"], expected_map())
    second = np.zeros((HEIGHT, WIDTH))
    second[1:4, 2:7] = 1
    np.testing.assert_array_equal(source[1]["label_map"], second)
    assert [sample["id"] for sample in open_context(tmp_path, "val")] == ["2008_000007"]
    objects = open_context(tmp_path, no_background=True)
    np.testing.assert_array_equal(objects[0]["label_map"], np.where(expected_map() == 0, IGNORE_INDEX, expected_map() - 1))
    assert objects.files(0) == (str(tmp_path / "JPEGImages" / "2008_000002.jpg"), str(tmp_path / "trainval_merged.json"))


def test_maps_hold_the_classes(tmp_path):
    raw_pascal_context(tmp_path)
    source, objects = open_context(tmp_path), open_context(tmp_path, no_background=True)
    assert source[1]["id"] == "2008_000003" and source[1]["label_map"][0].tolist() == [0, 1, 59, 34]
    assert objects[1]["label_map"][0].tolist() == [IGNORE_INDEX, 0, 58, 33]
    names = source.vocabulary.names
    assert (len(names), names[0], names[1], names[34], names[59]) == (60, "background", "aeroplane", "motorbike", "wood")
    assert objects.vocabulary.names == names[1:] == tuple(sorted(names[1:]))


@pytest.mark.parametrize("value", [60, 255])
def test_maps_of_another_numbering_are_refused(tmp_path, value):
    """255 marks maps of 59 classes, which would be read one class off."""
    raw_pascal_context(tmp_path)
    write_values(tmp_path / "VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png", row_of([0, value, 1, 2]))
    for no_background in (False, True):
        with pytest.raises(SourceError, match=f"2008_000002.png: label value {value} at x 1, y 0; maps of 60 classes hold 0..59"):
            open_context(tmp_path, no_background=no_background)[0]


def test_of_maps_and_json_the_maps_are_read(tmp_path):
    write_json(tmp_path)
    for stem in ("2008_000002", "2008_000003"):
        write_pair(
            tmp_path / "JPEGImages" / f"{stem}.jpg", tmp_path / "SegmentationClassContext" / f"{stem}.png", row_of([7] * WIDTH, HEIGHT)
        )
    write_lines(tmp_path / "ImageSets" / "SegmentationContext" / "train.txt", ["2008_000003"])
    for label_files, expected in (("auto", 7), ("maps", 7), ("json", 0)):
        source = open_context(tmp_path, label_files=label_files)
        assert [sample["id"] for sample in source] == ["2008_000003"]  # the list holds for both
        assert source[0]["label_map"][0, 0] == expected
    write_lines(tmp_path / "ImageSets" / "SegmentationContext" / "train.txt", ["2008_000007"])
    with pytest.raises(SourceError, match="train.txt: 2008_000007 is no photo of this split in .*trainval_merged.json"):
        open_context(tmp_path, label_files="json")


def test_an_unknown_category_names_image_and_id(tmp_path):
    write_json(tmp_path, [record(1, 2008000002, 2, 0, 0, 1, 1), record(2, 2008000002, 3, 0, 0, 1, 1), record(3, 2008000003, 2, 0, 0, 1, 1)])
    source = open_context(tmp_path)
    with pytest.raises(SourceError, match=r"trainval_merged.json, annotation 1 \(of 2008_000002.jpg\): category_id 3 is none of the 60"):
        source[0]
    assert source[1]["label_map"].sum() == 1  # the other photos are as they were


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of photos; expected .*VOCdevkit/VOC2010/JPEGImages"):
        open_context(tmp_path)
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(FileNotFoundError, match="no labels; expected .*SegmentationClassContext or .*trainval_merged.json"):
        open_context(tmp_path)
    for label_files in ("maps", "json"):
        with pytest.raises(FileNotFoundError, match="no labels; expected .*(SegmentationClassContext|trainval_merged.json)$"):
            open_context(tmp_path, label_files=label_files)
    write_json(tmp_path, phases=("train",) * 3)
    with pytest.raises(SourceError, match="trainval_merged.json: no photo of this split"):
        open_context(tmp_path, "val")
    (tmp_path / "JPEGImages" / "2008_000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="2008_000003.jpg: photo not found, but .*trainval_merged.json lists it"):
        open_context(tmp_path)[1]
    (tmp_path / "SegmentationClassContext").mkdir()
    with pytest.raises(FileNotFoundError, match="SegmentationContext/train.txt: list of the split not found"):
        open_context(tmp_path)


def test_the_source_travels_without_the_annotations(tmp_path):
    source = open_context(write_json(tmp_path, [record(k, 2008000002, 258, 0, 0, 6, 5) for k in range(500)]))
    sent = pickle.dumps(source)
    assert len(sent) < 20_000 < (tmp_path / "trainval_merged.json").stat().st_size
    np.testing.assert_array_equal(pickle.loads(sent)[0]["label_map"], source[0]["label_map"])


@pytest.mark.slow
def test_shards_from_the_json(tmp_path):
    """The command, in two processes."""
    write_json(tmp_path / "raw")
    options = ["--root", str(tmp_path / "raw"), "--splits", "train", "--out", str(tmp_path / "out")]
    assert prepare.main(["pascal_context", *options, "--rows-per-shard", "1", "--workers", "2"]) == 0
    reader, vocabulary = ShardReader.for_split(tmp_path / "out", "train"), load_vocabulary(tmp_path / "out")
    assert [reader[i]["id"] for i in range(2)] == ["2008_000002", "2008_000003"] and len(vocabulary) == 60
    np.testing.assert_array_equal(codec.decode_label_map(reader[0]["label_map"], vocabulary), expected_map())


def test_category_ids_are_the_labels_of_the_first_release(real_data):
    """Line k of the 459 labels is category id k: independent of our list of ids, each class has its name there."""
    labels = (real_data / "class_lists" / "context459.txt").read_text().splitlines()
    listed = (real_data / "class_lists" / "context60.txt").read_text().splitlines()
    names = read_class_names("context60")
    assert [{"table": "diningtable"}.get(name, name) for name in names] == listed
    assert pascal_context.CATEGORY_IDS[0] == 0 and len(pascal_context.CATEGORY_IDS) == 60
    assert [labels[k - 1] for k in pascal_context.CATEGORY_IDS[1:]] == list(names[1:])
