"""Data in COCO's formats: what rows hold, classes kept, and damaged copies of each kind."""

import json

import numpy as np
import pytest

from data_prep import prepare
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.utils.run_lengths import mask_of_text
from tests.data_prep import raw_segments as raw
from tests.data_prep.raw_segments import H, W, change_json, rectangle, segment_map, write_coco_format


def open_split(root, *options, split="train", dataset="coco_format"):
    args = prepare.parse_arguments([dataset, "--root", str(root), "--out", str(root / "out"), "--splits", split, *options])
    return prepare.load_dataset_module(dataset).open_split(root, split, args)


def test_rows(tmp_path):
    write_coco_format(tmp_path)
    source = open_split(tmp_path)
    assert source.vocabulary.names == ("cat", "grass", "dog", "sky") and source.vocabulary.thing == (True, False, True, False)
    assert source.columns == ("image", "label_map", "id", "segment_map", "segments", "instances")
    sample = source[1]
    ids = segment_map(1)
    assert sample["id"] == "000000000031"
    np.testing.assert_array_equal(sample["segment_map"], ids)
    classes = np.vectorize({0: -1, 70000: 3, 5: 0, 300: 2, 16_000_000: 1}.get)(ids)
    np.testing.assert_array_equal(sample["label_map"], classes)
    assert [(s["id"], s["class_id"], s["is_crowd"]) for s in sample["segments"]] == [
        (70000, 3, False),
        (5, 0, False),
        (300, 2, True),
        (16_000_000, 1, False),
    ]
    assert sample["segments"][1] == {"id": 5, "class_id": 0, "is_crowd": False, "area": 6, "box": [2.0, 1.0, 5.0, 3.0]}
    dog, cat, crowd = sample["instances"]
    assert (dog["id"], dog["class_id"], dog["area"], dog["box"]) == (311, 2, 8.5, [2.0, 1.0, 5.0, 4.0])
    np.testing.assert_array_equal(mask_of_text(dog["mask"], H, W), rectangle(1, 2, 4, 5))
    np.testing.assert_array_equal(mask_of_text(cat["mask"], H, W), rectangle(0, 0, 6, 4))  # whole, though the dog lies over it
    assert crowd["is_crowd"] and not cat["is_crowd"]


def test_instances_alone_are_painted_small_ones_on_top(tmp_path):
    write_coco_format(tmp_path)
    (tmp_path / "annotations" / "panoptic_train.json").unlink()
    source = open_split(tmp_path)
    assert source.vocabulary.names == ("cat", "dog") and source.columns == ("image", "label_map", "id", "instances")
    expected = np.full((H, W), -1)
    expected[:, :4] = 0
    expected[1:4, 2:5] = 1  # over the cat, and over the crowd, which has no label
    np.testing.assert_array_equal(source[0]["label_map"], expected)


def test_background_is_a_class_on_request(tmp_path):
    write_coco_format(tmp_path)
    with pytest.raises(SourceError, match="for all classes of an instances file alone"):
        open_split(tmp_path, "--background", "wall")
    (tmp_path / "annotations" / "panoptic_train.json").unlink()
    source = open_split(tmp_path, "--background", "wall", "--novel", "dog")
    vocabulary, label_map = source.vocabulary, source[0]["label_map"]
    assert (
        vocabulary.names == ("cat", "dog", "wall") and vocabulary.thing == (True, True, False) and vocabulary.novel == (False, True, False)
    )
    assert len(set(vocabulary.extra["category_ids"])) == 3
    without = open_split(tmp_path)[0]["label_map"]
    crowd = mask_of_text(next(e for e in source[0]["instances"] if e["is_crowd"])["mask"], H, W)
    np.testing.assert_array_equal(label_map, np.where((without == -1) & ~crowd, 2, without))
    with pytest.raises(SourceError, match="'cat' is one of the categories"):
        open_split(tmp_path, "--background", "cat")


def test_photos_in_folders_of_their_own(tmp_path):
    """cam0/1.jpg and cam1/1.jpg are two photos; a folder that only the file writes is passed over."""
    write_coco_format(tmp_path)
    (tmp_path / "annotations" / "panoptic_train.json").unlink()
    plain = open_split(tmp_path)
    samples, paths, names = [plain[i] for i in range(2)], [plain.name(i) for i in range(2)], iter(("cam0/1.jpg", "cam1/1.jpg"))

    def rename(content):
        for record in content["images"][:2]:
            record["file_name"] = next(names)

    change_json(tmp_path / "annotations" / "instances_train.json", rename)
    for path, name in zip(paths, ("cam0", "cam1")):
        folder = tmp_path / "images" / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "1.jpg").write_bytes(open(path, "rb").read())
    source = open_split(tmp_path)
    assert [source[i]["id"] for i in range(2)] == ["cam0/1", "cam1/1"]
    for i, sample in enumerate(samples):
        assert source[i]["image"] == sample["image"]
        np.testing.assert_array_equal(source[i]["label_map"], sample["label_map"])

    (tmp_path / "images" / "train" / "cam1" / "1.jpg").rename(tmp_path / "images" / "train" / "1.jpg")
    with pytest.raises(FileNotFoundError, match="cam1/1.jpg: photo not found"):  # it may be any of the two
        open_split(tmp_path)[1]

    def elsewhere(content):
        content["images"][0]["file_name"] = "train2017/" + paths[0].rsplit("/", 1)[1]

    change_json(tmp_path / "annotations" / "instances_train.json", elsewhere)
    assert open_split(tmp_path)[0]["image"] == samples[0]["image"]

    def outside(content):
        content["images"][0]["file_name"] = "../../secret.jpg"

    change_json(tmp_path / "annotations" / "instances_train.json", outside)
    with pytest.raises(SourceError, match="leads out of its folder"):
        open_split(tmp_path)


def test_segment_maps_in_folders_of_their_own(tmp_path):
    """cam0/1.png and cam1/1.png are two maps, each of its own photo."""
    write_coco_format(tmp_path)
    (tmp_path / "annotations" / "instances_train.json").unlink()
    plain = open_split(tmp_path)
    samples, file, photos = (
        [plain[i] for i in range(2)],
        tmp_path / "annotations" / "panoptic_train.json",
        [plain.name(i) for i in range(2)],
    )
    maps = [plain.panoptic.path(plain.panoptic.record(photo)[1]) for photo in plain.photos[:2]]
    ids = {photo.id: f"cam{k}" for k, photo in enumerate(plain.photos[:2])}

    def rename(content):
        for record in content["images"]:
            record["file_name"] = f"{ids[record['id']]}/1.jpg" if record["id"] in ids else record["file_name"]
        for record in content["annotations"]:
            record["file_name"] = f"{ids[record['image_id']]}/1.png" if record["image_id"] in ids else record["file_name"]

    change_json(file, rename)
    for k, (photo, png) in enumerate(zip(photos, maps)):
        for source, target in ((photo, tmp_path / "images" / "train" / f"cam{k}" / "1.jpg"), (png, png.parent / f"cam{k}" / "1.png")):
            target.parent.mkdir(parents=True)
            target.write_bytes(open(source, "rb").read())
    source = open_split(tmp_path)
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(source[i]["segment_map"], sample["segment_map"])
        assert source[i]["segments"] == sample["segments"] and source[i]["image"] == sample["image"]
        assert str(maps[0].parent / f"cam{i}" / "1.png") in source.files(i)


def test_named_places_need_no_root_or_lie_below_it(tmp_path, caplog):
    write_coco_format(tmp_path)
    change_json(tmp_path / "annotations" / "instances_train.json", lambda content: content["annotations"][1].update(image_id=987654321))
    named = ["--instances", "annotations/instances_train.json", "--photos", "images/train"]
    below = open_split(tmp_path, *named)
    assert "1 annotations are left out" in caplog.text and "annotation 1)" in caplog.text
    absolute = [word if word.startswith("--") else str(tmp_path / word) for word in named]
    arguments = ["coco_format", *absolute, "--out", str(tmp_path / "out"), "--splits", "train", "--format", "parquet"]
    assert prepare.main(arguments) == 0
    assert len(ShardReader.for_split(tmp_path / "out", "train")) == len(below)
    assert prepare.main(["coco_format", *absolute[:2], "--out", str(tmp_path / "out2")]) == 1


def test_classes_kept(tmp_path):
    write_coco_format(tmp_path)
    marked = open_split(tmp_path, "--novel", "dog,sky").vocabulary
    assert marked.novel == (False, False, True, True) and marked.extra["category_ids"] == [3, 7, 9, 200]
    base = open_split(tmp_path, "--novel", "dog,sky", "--classes", "base")
    assert base.vocabulary.names == ("cat", "grass") and base.vocabulary.extra["category_ids"] == [3, 7]
    sample, ids = base[0], segment_map(0)
    np.testing.assert_array_equal(sample["segment_map"], np.where(np.isin(ids, [5, 16_000_000]), ids, 0))
    assert [(s["id"], s["class_id"]) for s in sample["segments"]] == [(5, 0), (16_000_000, 1)]
    assert [e["class_id"] for e in sample["instances"]] == [0, 0]
    assert set(np.unique(sample["label_map"])) == {-1, 0, 1}
    with pytest.raises(SourceError, match="novel class 'cow' is not among the categories"):
        open_split(tmp_path, "--novel", "cow")
    with pytest.raises(SourceError, match="no novel class; name the novel classes"):
        open_split(tmp_path, "--classes", "novel")


def test_splits_are_found_and_files_may_lie_elsewhere(tmp_path):
    write_coco_format(tmp_path, "train")
    write_coco_format(tmp_path, "night", ids=(4,), instances=False)
    args = prepare.parse_arguments(["coco_format", "--root", str(tmp_path), "--out", "o"])
    assert prepare.load_dataset_module("coco_format").list_splits(tmp_path, args) == ["night", "train"]
    options = ["--panoptic", str(tmp_path / "annotations" / "panoptic_night.json"), "--photos", str(tmp_path / "images" / "night")]
    assert len(open_split(tmp_path / "annotations", *options, split="test")) == 1
    with pytest.raises(FileNotFoundError, match="panoptic_test.json or .*instances_test.json: not found"):
        open_split(tmp_path, "--photos", str(tmp_path), split="test")
    with pytest.raises(FileNotFoundError, match="--photos is the folder of the photos"):
        open_split(tmp_path, "--photos", str(tmp_path / "none"))


def first_info(content):
    return content["annotations"][0]["segments_info"]


def without_pixels(content):
    first_info(content).append({"id": 77, "category_id": 3, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2]})


def not_listed(content):
    del first_info(content)[0]


def listed_twice(content):
    first_info(content).append(first_info(content)[0])


def id_zero(content):
    first_info(content)[0]["id"] = 0


def unknown_category(content):
    first_info(content)[0]["category_id"] = 4


def no_record(content):
    del content["annotations"][0]


def two_records(content):
    content["annotations"].append(content["annotations"][0])


def another_size(content):
    content["images"][0]["height"] = W


def bad_box(content):
    first_info(content)[0]["bbox"] = [0, 0, -2, 2]


PANOPTIC_FAULTS = [
    (without_pixels, r"annotation 0 \(of 000000000012.jpg\): the segments \[77\] have no pixel in .*000000000012.png; leave them out"),
    (not_listed, r"000000000012.png: the ids \[70000\] are drawn, but not among segments_info of .*annotation 0"),
    (listed_twice, "segment id 70000 stands twice"),
    (id_zero, "segment id 0 is not in 1..16777215"),
    (unknown_category, "segment 70000: category_id 4 is not in the list of categories"),
    (no_record, "0 records of image_id 12 .*expected one"),
    (two_records, "2 records of image_id 12"),
    (another_size, "segment map of 6x9 .*the photo has 9x9"),
    (bad_box, r"bbox \[0, 0, -2, 2\] is not"),
]


@pytest.mark.parametrize("change, message", PANOPTIC_FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_panoptic_files(tmp_path, change, message):
    """One photo's fault is one error that names file and record, and costs only that photo."""
    write_coco_format(tmp_path, instances=False)
    change_json(tmp_path / "annotations" / "panoptic_train.json", change)
    source = open_split(tmp_path)
    with pytest.raises(SourceError, match=message):
        source[0]
    assert source[1]["id"] == "000000000031"


def change_object(**changes):
    return lambda content: content["annotations"][0].update(changes)


INSTANCE_FAULTS = [
    (change_object(segmentation={"size": [H, W + 1], "counts": "00"}), r"annotation 0 .*run lengths of size \[6, 10\]"),
    (change_object(segmentation={"size": [H, W], "counts": [3, 2]}), "run lengths add up to 5 pixels"),
    (change_object(segmentation={"size": [H, W], "counts": "2P"}), "ends in the middle"),
    (change_object(segmentation=None), "no polygons and no run lengths"),
    (change_object(category_id=200), "category_id 200 is not in the list"),
    (change_object(category_id="cat"), "category_id is 'cat', not a number"),
    (change_object(bbox=[1, 2]), r"bbox \[1, 2\] is not"),
]


@pytest.mark.parametrize("change, message", INSTANCE_FAULTS, ids=range(len(INSTANCE_FAULTS)))
def test_damaged_instances_files(tmp_path, change, message):
    write_coco_format(tmp_path)
    (tmp_path / "annotations" / "panoptic_train.json").unlink()
    change_json(tmp_path / "annotations" / "instances_train.json", change)
    source = open_split(tmp_path)
    with pytest.raises(SourceError, match=message):
        source[0]
    assert len(source[1]["instances"]) == 3


@pytest.mark.parametrize(
    "categories, message",
    [
        ([], "the list of categories is empty"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "two categories have the id 1"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "two categories have the name 'a'"),
        ([{"id": 1}], r"categories\[0\].* has no id and name"),
    ],
)
def test_damaged_categories(tmp_path, categories, message):
    write_coco_format(tmp_path, instances=False)
    change_json(tmp_path / "annotations" / "panoptic_train.json", lambda content: content.update(categories=categories))
    with pytest.raises(SourceError, match=message):
        open_split(tmp_path)


def test_files_that_disagree_on_a_class(tmp_path):
    write_coco_format(tmp_path)
    change_json(tmp_path / "annotations" / "instances_train.json", lambda content: content["categories"][0].update(name="cow"))
    with pytest.raises(SourceError, match="category 3 is 'cow', in .*panoptic_train.json it is 'cat'"):
        open_split(tmp_path)


def test_missing_and_damaged_images(tmp_path):
    write_coco_format(tmp_path, instances=False)
    png = tmp_path / "annotations" / "panoptic_train" / "000000000012.png"
    png.write_bytes(png.read_bytes()[:40])
    with pytest.raises(SourceError, match="000000000012.png: .*(damaged|not an image)"):
        open_split(tmp_path)[0]
    png.unlink()
    with pytest.raises(FileNotFoundError, match="000000000012.png: segment map not found"):
        open_split(tmp_path)[0]
    (tmp_path / "images" / "train" / "000000000031.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="000000000031.jpg: photo not found"):
        open_split(tmp_path)[1]


def test_a_bad_photo_is_left_out_when_asked(tmp_path, capsys):
    write_coco_format(tmp_path, ids=(12, 31, 44))
    change_json(tmp_path / "annotations" / "panoptic_train.json", without_pixels)
    command = ["coco_format", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert prepare.main(command) == 1 and "have no pixel" in capsys.readouterr().err
    assert prepare.main([*command, "--on-bad-sample", "skip"]) == 0
    assert [row["id"] for row in ShardReader.for_split(tmp_path / "out", "train")] == ["000000000031", "000000000044"]


def test_coco_panoptic(tmp_path):
    raw.raw_coco_panoptic(tmp_path)
    source = open_split(tmp_path, dataset="coco_panoptic")
    names, novel = source.vocabulary.names, source.vocabulary.novel
    assert len(names) == 133 and sum(source.vocabulary.thing) == 80 and names[:2] == ("person", "bicycle") and names[-1] == "rug-merged"
    held_out = {name for name, is_novel in zip(names, novel) if is_novel}
    assert len(held_out) == 11 and {"cow", "road", "river", "cardboard"} < held_out
    # flags of the published ensemble: 125 base classes, 8 novel ones
    assert len(held_out - set(source.vocabulary.extra["counted_as_base"])) == 8
    assert [names[s["class_id"]] for s in source[0]["segments"]] == ["sky-other-merged", "cat", "cow", "grass-merged"]
    base = open_split(tmp_path, "--classes", "base", dataset="coco_panoptic")
    assert len(base.vocabulary) == 122
    assert [base.vocabulary.names[s["class_id"]] for s in base[0]["segments"]] == ["sky-other-merged", "cat", "grass-merged"]
    change_json(tmp_path / "annotations" / "panoptic_train2017.json", lambda content: content["categories"][0].update(name="carpet"))
    with pytest.raises(SourceError, match="use coco_format for other classes"):
        open_split(tmp_path, dataset="coco_panoptic")
    with pytest.raises(FileNotFoundError, match="leave --with-instances out"):
        raw.raw_coco_panoptic(tmp_path)
        open_split(tmp_path, "--with-instances", dataset="coco_panoptic")


def test_coco_instances(tmp_path):
    raw.raw_coco_instances(tmp_path)
    source = open_split(tmp_path, dataset="coco_instances")
    assert len(source.vocabulary) == 80 and sum(source.vocabulary.novel) == 7 and all(source.vocabulary.thing)
    assert [source.vocabulary.names[e["class_id"]] for e in source[0]["instances"]] == ["cow", "cat", "cat"]
    assert open_split(tmp_path, "--classes", "base", dataset="coco_instances").vocabulary.extra["category_ids"][15] == 17  # cat


def link_panoptic_sample(real_data, root):
    """The four photos of the pack in the layout of the release; returns the records of its JSON files."""
    sample = real_data / "panoptic_sample"
    parts = [json.loads((sample / f"panoptic_{name}.json").read_text()) for name in ("examples", "extra")]
    content = {key: parts[0][key] + parts[1][key] for key in ("images", "annotations")} | {"categories": parts[0]["categories"]}
    raw.write_json(root / "annotations" / "panoptic_val2017.json", content)
    (root / "annotations" / "panoptic_val2017").symlink_to(sample / "panoptic")
    (root / "val2017").symlink_to(sample / "images")
    return content


def test_real_panoptic_photos(real_data, tmp_path):
    """Every pixel, class, area and box of four photos; both file formats."""
    content = link_panoptic_sample(real_data, tmp_path)
    names = {category["id"]: category["name"] for category in content["categories"]}
    for format in ("tsv", "parquet"):
        command = ["coco_panoptic", "--root", str(tmp_path), "--splits", "val", "--out", str(tmp_path / format), "--format", format]
        assert prepare.main([*command, "--workers", "1"]) == 0
    vocabulary = load_vocabulary(tmp_path / "tsv")
    readers = [ShardReader.for_split(tmp_path / format, "val") for format in ("tsv", "parquet")]
    segments = 0
    for i, image in enumerate(content["images"]):
        row = readers[0][i]
        assert row == readers[1][i] and row["id"] == image["file_name"][:-4]
        record = next(record for record in content["annotations"] if record["image_id"] == image["id"])
        drawn = codec.decode_segment_map(row["segment_map"])
        label_map = codec.decode_label_map(row["label_map"], vocabulary)
        assert label_map.shape == (image["height"], image["width"]) and ((label_map < 0) == (drawn == 0)).all()
        for info, segment in zip(record["segments_info"], row["segments"], strict=True):
            mask = drawn == info["id"]
            assert vocabulary.names[segment["class_id"]] == names[info["category_id"]] and (label_map[mask] == segment["class_id"]).all()
            assert segment["area"] == info["area"] == mask.sum()
            segments += 1
    assert segments == 90
