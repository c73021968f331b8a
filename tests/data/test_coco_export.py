"""Export to COCO's formats: what is written is what was read, on drawn data, the real pack, and through pycocotools."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_prep import prepare
from ofaseg.data import codec
from ofaseg.data.coco_export import ExportError, InstanceWriter, PanopticWriter, category_ids, export_split, image_numbers, instance_entries
from ofaseg.data.rows import ShardError
from ofaseg.data.shard_writer import ShardWriter
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.utils.run_lengths import text_of_mask
from ofaseg.vocabulary import ClassVocabulary
from tests.data_prep.raw_segments import CATEGORIES, write_coco_format
from tests.data_prep.test_coco_format import link_panoptic_sample

VOCABULARY = ClassVocabulary(names=("sky", "cat"), thing=(False, True))


def convert(dataset, root, split, *options):
    """Shards of a raw folder, exported again; the content of the JSON files."""
    command = [dataset, "--root", str(root), "--splits", split, "--out", str(root / "shards"), "--workers", "1", *options]
    assert prepare.main(command) == 0
    reader = ShardReader.for_split(root / "shards", split)
    return {path.name: json.loads(path.read_text()) for path in export_split(reader, load_vocabulary(root / "shards"), root / "out", split)}


def by_image(content):
    return {record["image_id"]: record for record in content["annotations"]}


def plain(info):
    return {key: info[key] for key in ("id", "category_id", "iscrowd", "area", "bbox")}


def assert_same_segments(found, expected, out_folder, raw_folder):
    """All entries of two panoptic files and all pixels of their PNG files."""
    assert by_image(found).keys() == by_image(expected).keys()
    for number, record in by_image(expected).items():
        other = by_image(found)[number]
        assert [plain(info) for info in other["segments_info"]] == [plain(info) for info in record["segments_info"]]
        pixels = [codec.decode_segment_map((f / r["file_name"]).read_bytes()) for f, r in ((out_folder, other), (raw_folder, record))]
        np.testing.assert_array_equal(*pixels)


def test_panoptic_and_instances_there_and_back(tmp_path):
    write_coco_format(tmp_path)
    raw = tmp_path / "annotations"
    found = convert("coco_format", tmp_path, "train")
    expected = {name: json.loads((raw / name).read_text()) for name in ("panoptic_train.json", "instances_train.json")}
    assert found.keys() == expected.keys()
    panoptic = found["panoptic_train.json"]
    assert panoptic["categories"] == CATEGORIES and panoptic["images"] == expected["panoptic_train.json"]["images"]
    assert_same_segments(panoptic, expected["panoptic_train.json"], tmp_path / "out" / "panoptic_train", raw / "panoptic_train")
    keys = ("id", "image_id", "category_id", "iscrowd", "area", "bbox", "segmentation")
    records = [[{key: record[key] for key in keys} for record in c["instances_train.json"]["annotations"]] for c in (found, expected)]
    assert records[0] == records[1]


def test_real_segments_there_and_back(real_data, tmp_path):
    content = link_panoptic_sample(real_data, tmp_path)
    found = convert("coco_panoptic", tmp_path, "val")["panoptic_val.json"]
    assert_same_segments(found, content, tmp_path / "out" / "panoptic_val", real_data / "panoptic_sample" / "panoptic")
    names = [(c["id"], c["name"], c["isthing"]) for c in content["categories"]]
    assert [(c["id"], c["name"], c["isthing"]) for c in found["categories"]] == names


def test_masks_of_segments_are_those_of_panopticapi(real_data):
    """The pack's detection-format file was made from the PNG files by panopticapi: our run lengths are the same text."""
    sample = real_data / "panoptic_sample"
    detections = json.loads((sample / "panoptic_coco_detection_format.json").read_text())["annotations"]
    panoptic = json.loads((sample / "panoptic_examples.json").read_text())
    checked = 0
    for record in panoptic["annotations"]:
        drawn = codec.decode_segment_map((sample / "panoptic" / record["file_name"]).read_bytes())
        masks = [d["segmentation"]["counts"] for d in detections if d["image_id"] == record["image_id"]]
        for info, text in zip(record["segments_info"], masks, strict=True):
            assert text_of_mask(drawn == info["id"]) == text
            checked += 1
    assert checked == len(detections) == 50


def test_real_objects_there_and_back(real_data, tmp_path):
    """All objects of the pack's validation photos: numbers, classes, crowds, areas, boxes; masks as pycocotools draws them."""
    coco_mask = pytest.importorskip("pycocotools.mask")
    for name in ("annotations", "val2017"):
        (tmp_path / name).symlink_to(real_data / "coco_mini" / name)
    expected = json.loads((real_data / "coco_mini" / "annotations" / "instances_val2017.json").read_text())
    found = convert("coco_instances", tmp_path, "val")["instances_val.json"]
    sizes = {image["id"]: (image["height"], image["width"]) for image in expected["images"]}
    assert {image["id"]: (image["height"], image["width"]) for image in found["images"]} == sizes
    records = {record["id"]: record for record in found["annotations"]}
    assert len(expected["annotations"]) == len(records) == 987
    for record in expected["annotations"]:
        ours = records[record["id"]]
        assert [ours[key] for key in ("image_id", "category_id", "iscrowd")] == [record[k] for k in ("image_id", "category_id", "iscrowd")]
        assert ours["area"] == record["area"] and ours["bbox"] == pytest.approx(record["bbox"], abs=1e-6)
        size, segmentation = sizes[record["image_id"]], record["segmentation"]
        parts = coco_mask.frPyObjects(segmentation, *size)
        rle = parts if isinstance(segmentation, dict) else coco_mask.merge(parts)
        assert ours["segmentation"] == {"size": list(size), "counts": rle["counts"].decode()}


def test_detections_load_as_results(tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco").COCO
    write_coco_format(tmp_path)
    convert("coco_format", tmp_path, "train")
    vocabulary = load_vocabulary(tmp_path / "shards")
    masks = np.zeros((2, 6, 9), dtype=bool)
    masks[0, 1:3, 2:4] = masks[1, 4, 5] = True
    writer = InstanceWriter(tmp_path, "results", vocabulary, results=True)
    writer.add(31, "000000000031", (6, 9), instance_entries(masks, [2, 0], [0.25, 0.5], [[2, 1, 4, 3], [5, 4, 6, 5]]))
    truth = coco(str(tmp_path / "out" / "instances_train.json"))
    results = truth.loadRes(str(writer.close()))
    first, second = results.loadAnns(results.getAnnIds(imgIds=[31]))
    assert (first["category_id"], first["score"], first["area"]) == (9, 0.25, 4) and second["category_id"] == 3
    np.testing.assert_array_equal(results.annToMask(first), masks[0])
    with pytest.raises(ExportError, match="an object without a score"):
        writer.add(31, "a", (6, 9), [{"id": 1, "class_id": 0, "area": 1.0, "box": [0, 0, 1, 1], "mask": "0"}])


def test_numbers_of_photos_and_objects(tmp_path):
    assert image_numbers(["000000000012", "7"]) == [12, 7]
    assert image_numbers(["12", "012"]) == image_numbers(["a", "12"]) == [1, 2]
    writer = InstanceWriter(tmp_path, "objects", VOCABULARY)
    entry = {"class_id": 1, "area": 1.0, "box": [0.5, 0.0, 1.0, 1.0], "mask": "03"}
    writer.add(1, "a", (1, 3), [entry | {"id": i} for i in (4, 0, 4, 2)])
    content = json.loads(writer.close().read_text())
    assert [record["id"] for record in content["annotations"]] == [4, 5, 6, 2]
    assert content["annotations"][0]["bbox"] == [0.5, 0, 0.5, 1] and content["annotations"][0]["category_id"] == 2
    assert content["categories"] == [{"id": 1, "name": "sky", "isthing": 0}, {"id": 2, "name": "cat", "isthing": 1}]


def test_predicted_segments_are_written_with_their_scores(tmp_path):
    drawn = np.array([[1, 1, 2], [0, 0, 2]])
    segments = [
        {"id": 1, "class_id": 0, "area": 2, "box": [0, 0, 2, 1], "score": 0.75},
        {"id": 2, "class_id": 1, "area": 2, "box": [2, 0, 3, 2]},
    ]
    writer = PanopticWriter(tmp_path, "predictions", VOCABULARY)
    writer.add(5, "photo", drawn, segments)
    content = json.loads(writer.close().read_text())
    assert content["annotations"][0]["segments_info"][0]["score"] == 0.75
    np.testing.assert_array_equal(codec.decode_segment_map((tmp_path / "predictions" / "photo.png").read_bytes()), drawn)


@pytest.mark.parametrize(
    "stem, segments, message",
    [
        ("a", [{"id": 1, "class_id": 0, "area": 1, "box": [0, 0, 1, 1]}], r"drawn only: \[2\]"),
        ("a", [{"id": i, "class_id": 0, "area": 1, "box": [0, 0, 1, 1]} for i in (1, 2, 3)], r"listed only or twice: \[3\]"),
        ("a", [{"id": i, "class_id": 2, "area": 1, "box": [0, 0, 1, 1]} for i in (1, 2)], "segment 1 has class 2, outside 0..1"),
        ("a", [{"id": i, "class_id": None, "area": 1, "box": [0, 0, 1, 1]} for i in (1, 2)], "class None"),
        ("../a", [{"id": i, "class_id": 0, "area": 1, "box": [0, 0, 1, 1]} for i in (1, 2)], "give the sample a plain id"),
    ],
)
def test_what_cannot_be_written(tmp_path, stem, segments, message):
    writer = PanopticWriter(tmp_path, "predictions", VOCABULARY)
    with pytest.raises(ExportError, match=message):
        writer.add(1, stem, np.array([[1, 2]]), segments)


def test_photos_below_folders_and_of_several_formats(tmp_path):
    """Ids that name folders are those of the PNG files too; the lists name each photo as what it is."""
    ids = np.array([[1, 2]], dtype=np.int32)
    segments = [{"id": i, "class_id": 0, "is_crowd": False, "area": 1, "box": [i - 1, 0, i, 1]} for i in (1, 2)]
    with ShardWriter(tmp_path, "train", VOCABULARY, ["id", "image", "segment_map", "segments"], "parquet") as writer:
        for name, format in (("a/1", "PNG"), ("b/1", "JPEG"), ("c", "GIF")):
            photo = io.BytesIO()
            Image.new("RGB", (2, 1)).save(photo, format)
            row = {"id": name, "image": photo.getvalue(), "segment_map": codec.encode_segment_map(ids), "segments": segments}
            writer.write(row)
    (path,) = export_split(ShardReader.for_split(tmp_path, "train"), VOCABULARY, tmp_path / "out", "train")
    content = json.loads(path.read_text())
    assert [image["file_name"] for image in content["images"]] == ["a/1.png", "b/1.jpg", "c.gif"]
    for annotation, name in zip(content["annotations"], ("a/1.png", "b/1.png", "c.png")):
        assert annotation["file_name"] == name
        np.testing.assert_array_equal(codec.decode_segment_map((tmp_path / "out" / "panoptic_train" / name).read_bytes()), ids)


def test_rows_without_segments_and_wrong_numbers(tmp_path):
    from tests.data_prep.raw_layouts import write_shards

    write_shards(tmp_path / "plain", columns=("image", "label_map", "id"))
    with pytest.raises(ShardError, match="neither segments nor instances"):
        export_split(ShardReader.for_split(tmp_path / "plain", "train"), VOCABULARY, tmp_path, "train")
    for numbers in ([1], [1, 1], "12"):
        with pytest.raises(ExportError, match="must hold 2 different numbers"):
            category_ids(ClassVocabulary(names=("a", "b"), extra={"category_ids": numbers}))
