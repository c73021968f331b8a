"""Damaged copies of a panoptic data set, a tiny one and the real photos of the data pack: one error that names file and record and
says what to do, or a result that is defined; and the other photos as they are without the damage.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import prepare
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.data.segmentation_dataset import SegmentationDataset
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.doctor.examine import examine
from ofaseg.evaluation.instance import InstanceEvaluator
from ofaseg.structures import InstanceSegmentation, SegmentationOutput
from ofaseg.utils.run_lengths import mask_of_text, text_of_mask
from ofaseg.vocabulary import ClassVocabulary
from tests.data_prep import raw_segments as raw
from tests.data_prep.raw_segments import change_json, write_ids

SPLIT = "val"


@dataclass(frozen=True)
class Tree:
    """A data set in COCO's formats; damage is done to its first photo."""

    root: Path

    @property
    def panoptic(self) -> Path:
        return self.root / "annotations" / f"panoptic_{SPLIT}.json"

    @property
    def instances(self) -> Path:
        return self.root / "annotations" / f"instances_{SPLIT}.json"

    @property
    def image(self) -> dict:
        return json.loads(self.panoptic.read_text())["images"][0]

    @property
    def png(self) -> Path:
        return self.panoptic.with_suffix("") / f"{Path(self.image['file_name']).stem}.png"

    @property
    def ids(self) -> np.ndarray:
        return codec.decode_segment_map(self.png.read_bytes())

    def open(self):
        args = prepare.parse_arguments(["coco_format", "--root", str(self.root), "--out", "out", "--splits", SPLIT])
        return prepare.load_dataset_module("coco_format").open_split(self.root, SPLIT, args)

    def convert(self, out, *more) -> int:
        command = ["coco_format", "--root", str(self.root), "--splits", SPLIT, "--workers", "1", "--format", "tsv", "--out", str(out)]
        return prepare.main([*command, *more])


def write_toy(root) -> None:
    raw.write_coco_format(root, SPLIT, ids=(12, 31, 44))


def write_real(root, pack) -> None:
    """The four photos of the pack; the objects of two of them, and run lengths of things of the others."""
    sample = pack / "panoptic_sample"
    parts = [json.loads((sample / f"panoptic_{name}.json").read_text()) for name in ("examples", "extra")]
    content = {key: parts[0][key] + parts[1][key] for key in ("images", "annotations")} | {"categories": parts[0]["categories"]}
    raw.write_json(root / "annotations" / f"panoptic_{SPLIT}.json", content)
    things = {category["id"] for category in content["categories"] if category["isthing"]}
    objects = json.loads((sample / "panoptic_coco_detection_format.json").read_text())
    objects["annotations"] = [record for record in objects["annotations"] if record["category_id"] in things]
    objects["categories"] = [category for category in objects["categories"] if category["id"] in things]
    raw.write_json(root / "annotations" / f"instances_{SPLIT}.json", objects)
    shutil.copytree(sample / "panoptic", root / "annotations" / f"panoptic_{SPLIT}")
    (root / "images").mkdir()
    shutil.copytree(sample / "images", root / "images" / SPLIT)


@pytest.fixture(scope="module", params=["toy", pytest.param("real", marks=pytest.mark.slow)])
def clean(request, tmp_path_factory):
    """(tree, its rows); not to be changed."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "toy":
        write_toy(root)
    else:
        write_real(root, request.getfixturevalue("real_data"))
    tree = Tree(root)
    assert tree.convert(root / "out") == 0
    rows = list(ShardReader.for_split(root / "out", SPLIT))
    shutil.rmtree(root / "out")
    return tree, rows


@pytest.fixture
def tree(clean, tmp_path):
    shutil.copytree(clean[0].root, tmp_path / "tree")
    return Tree(tmp_path / "tree")


# ---- errors ----


def in_record(change):
    """A change of the first photo's record in the panoptic file."""

    def damage(tree):
        def change_record(content):
            change(next(record for record in content["annotations"] if record["image_id"] == content["images"][0]["id"]))

        change_json(tree.panoptic, change_record)

    return damage


def in_info(**values):
    return in_record(lambda record: record["segments_info"][0].update(values))


def in_object(change):
    """A change of the first photo's first object."""

    def damage(tree):
        photo = tree.image["id"]
        change_json(tree.instances, lambda content: change(next(r for r in content["annotations"] if r["image_id"] == photo)))

    return damage


def segmentation(value):
    return in_object(lambda record: record.update(segmentation=value))


def in_png(change):
    return lambda tree: write_ids(tree.png, change(tree.ids))


def first_id_erased(tree):
    first = next(i for i in json.loads(tree.panoptic.read_text())["annotations"] if i["image_id"] == tree.image["id"])["segments_info"][0]
    write_ids(tree.png, np.where(tree.ids == first["id"], 0, tree.ids))


def one_channel(tree):
    Image.fromarray(tree.ids.astype(np.uint8)).save(tree.png)


def cut(tree):
    tree.png.write_bytes(tree.png.read_bytes()[:60])


def compressed(tree):
    Image.open(tree.png).convert("RGB").save(tree.png, "JPEG")


def photo_of_another_size(tree):
    path = tree.root / "images" / SPLIT / tree.image["file_name"]
    image = Image.open(path)
    image.resize((image.width, image.height + 1)).save(path)


def listed_under_another_size(tree):
    change_json(tree.instances, lambda c: next(i for i in c["images"] if i["id"] == tree.image["id"]).update(height=5000))


ERRORS = {
    "listed, not drawn": (first_id_erased, r"the segments \[\d+\] have no pixel in .*png; leave them out"),
    "drawn, not listed": (
        in_record(lambda r: r["segments_info"].pop(0)),
        r"png: the ids \[\d+\] are drawn, but not among .*; add or erase",
    ),
    "drawn anew": (in_png(lambda ids: np.where(ids == ids[0, 0], 77, ids)), r"png: the ids \[77\] are drawn, but not among"),
    "listed twice": (in_record(lambda r: r["segments_info"].append(r["segments_info"][0])), r"segment id \d+ stands twice .*remove"),
    "id as text": (in_info(id="5"), r"segment id '5' is not in 1\.\.16777215; correct"),
    "id 0": (in_info(id=0), r"segment id 0 is not in"),
    "unknown category": (in_info(category_id=9999), r"segment \d+: category_id 9999 is not in the list of categories; add it"),
    "category null": (in_info(category_id=None), "category_id None is not in the list"),
    "crowd as text": (in_info(iscrowd="0"), r"segment \d+: iscrowd is '0', not 0 or 1; correct"),
    "area as text": (in_info(area="big"), r"segment \d+: area 'big' is not a number of pixels; correct"),
    "area null": (in_info(area=None), "area None is not a number of pixels"),
    "box reversed": (in_info(bbox=[5, 5, -2, 2]), r"bbox \[5, 5, -2, 2\] is not \[x, y, width, height\]; correct"),
    "box not finite": (in_info(bbox=[float("nan"), 0, 1, 1]), "bbox .*nan.* is not"),
    "no segments": (in_record(lambda r: r.pop("segments_info")), "no list segments_info; is this the panoptic file"),
    "PNG of another name": (in_record(lambda r: r.update(file_name="x.png")), "x.png: segment map not found, .* copy the folder"),
    "PNG missing": (lambda tree: tree.png.unlink(), "png: segment map not found, but .* names it; copy"),
    "PNG without a record": (in_record(lambda r: r.update(image_id=999_999)), "0 records of image_id .*expected one. Correct"),
    "PNG of another size": (
        in_png(lambda ids: ids[:-1]),
        r"png: segment map of \d+x\d+ \(height x width\), the photo has .*; pair the files",
    ),
    "PNG of one channel": (one_channel, "png: a segment map must be an RGB PNG, not PNG L; write"),
    "PNG cut": (cut, "png: .*(damaged|not an image|truncated).*; "),
    "PNG as JPEG": (compressed, "png: a segment map must be an RGB PNG, not JPEG"),
    "photo of another size": (photo_of_another_size, "must have one size|but the image has .*; pair the files"),
    "photo missing": (
        lambda tree: (tree.root / "images" / SPLIT / tree.image["file_name"]).unlink(),
        "jpg: photo not found, .* copy it there",
    ),
    "sizes disagree": (listed_under_another_size, r"instances_val.json: image \d+ is .*, 5000x\d+ .*, elsewhere .*; pair the files"),
    "run lengths of another size": (
        segmentation({"size": [2, 3], "counts": [6]}),
        r"run lengths of size \[2, 3\] in a photo of .*; correct",
    ),
    "run lengths too short": (
        in_object(lambda r: r["segmentation"].update(counts=[4, 2])),
        r"run lengths add up to 6 pixels, not to .*; correct",
    ),
    "run lengths cut": (in_object(lambda r: r["segmentation"].update(counts="2P")), "ends in the middle of a number; correct"),
    "polygon of two points": (segmentation([[0, 0, 3, 3]]), r"a polygon is not a list \[x0, y0, .*; correct"),
    "no mask": (segmentation(None), "no polygons and no run lengths; expected a list"),
    "object of unknown category": (
        in_object(lambda r: r.update(category_id=9999)),
        "category_id 9999 is not in the list of categories; add",
    ),
    "object of crowd 2": (in_object(lambda r: r.update(iscrowd=2)), "iscrowd is 2, not 0 or 1; correct"),
}


@pytest.mark.parametrize("damage, message", ERRORS.values(), ids=ERRORS)
def test_one_photo_gives_one_reason(clean, tree, tmp_path, capsys, damage, message):
    """Conversion stops with it; the source reads the last photo as before."""
    damage(tree)
    assert tree.convert(tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert str(tree.root) in error and "Traceback" not in error
    assert re.search(message, error), error
    source, row = tree.open(), clean[1][-1]
    sample = source[len(source) - 1]
    assert (sample["segments"], sample["instances"]) == (row["segments"], row["instances"])


@pytest.mark.parametrize("clean", ["toy"], indirect=True)
@pytest.mark.parametrize("damage, message", ERRORS.values(), ids=ERRORS)
def test_one_photo_is_left_out(clean, tree, tmp_path, damage, message):
    """Skipping it writes the rows of all others, byte for byte, and the reason into the summary."""
    damage(tree)
    assert tree.convert(tmp_path / "out", "--on-bad-sample", "skip") == 0
    assert list(ShardReader.for_split(tmp_path / "out", SPLIT)) == clean[1][1:]
    (skipped,) = json.loads((tmp_path / "out" / f"summary_{SPLIT}.json").read_text())["skipped"]
    assert re.search(message, skipped["reason"])


def test_photos_that_stand_twice(clean, tree, tmp_path, capsys):
    """Two photos of one id share annotations, so neither can be read; the others can."""
    change_json(tree.panoptic, lambda content: content["images"][1].update(id=content["images"][0]["id"]))
    assert tree.convert(tmp_path / "out", "--on-bad-sample", "skip") == 0
    assert re.search(r"panoptic_val.json: two records of images have the id \d+; remove one", capsys.readouterr().out)
    assert list(ShardReader.for_split(tmp_path / "out", SPLIT)) == clean[1][2:]
    name = tree.image["file_name"]
    change_json(tree.panoptic, lambda content: content["images"][1].update(id=999_999, file_name=name))
    with pytest.raises(SourceError, match=f"two records of images have the file_name '{name}'"):
        tree.open()[0]
    assert tree.open()[2]["id"] == clean[1][2]["id"]


CATEGORIES = {
    "names differ": (lambda content: content["categories"][0].update(name="another"), r"category \d+ is 'another', in .*panoptic_val.json"),
    "one is missing there": (
        lambda content: content["categories"].append({"id": 9999, "name": "x"}),
        "category 9999 is 'x', in .* 'nothing'",
    ),
    "an id stands twice": (lambda content: content["categories"].append(content["categories"][0]), "two categories have the id"),
    "a thing by text": (lambda content: content["categories"][0].update(isthing="yes"), r"categories\[0\]: isthing is 'yes', not 0 or 1"),
}


@pytest.mark.parametrize("change, message", CATEGORIES.values(), ids=CATEGORIES)
def test_files_that_disagree_on_categories(tree, change, message):
    change_json(tree.instances, change)
    with pytest.raises(SourceError, match=f"instances_val.json.*{message}"):
        tree.open()


def test_splits_of_other_categories_do_not_share_a_folder(tree, tmp_path, capsys):
    assert tree.convert(tmp_path / "out") == 0
    for path in (tree.panoptic, tree.instances):
        change_json(path, lambda content: content["categories"][0].update(name="another"))
        path.rename(path.with_name(path.name.replace(SPLIT, "test")))
    (tree.root / "images" / SPLIT).rename(tree.root / "images" / "test")
    tree.panoptic.with_suffix("").rename(tree.root / "annotations" / "panoptic_test")
    command = [
        "coco_format",
        "--root",
        str(tree.root),
        "--splits",
        "test",
        "--workers",
        "1",
        "--format",
        "tsv",
        "--out",
        str(tmp_path / "out"),
    ]
    assert prepare.main(command) == 1
    assert re.search("vocabulary.json: names of the splits there .* choose another folder", capsys.readouterr().err)


# ---- results that are defined ----


def converted(tree, out) -> list[dict]:
    assert tree.convert(out) == 0
    return list(ShardReader.for_split(out, SPLIT))


def test_what_no_photo_needs_is_passed_over(clean, tree, tmp_path):
    """A PNG without photo, annotations of photos that are not listed, an area that is not the number of pixels."""
    write_ids(tree.png.with_name("000000777777.png"), tree.ids)
    change_json(tree.panoptic, lambda content: content["annotations"].append(content["annotations"][0] | {"image_id": 777_777}))
    change_json(tree.instances, lambda content: content["annotations"].append(content["annotations"][0] | {"image_id": 777_777}))
    assert converted(tree, tmp_path / "out") == clean[1]
    in_info(area=3)(tree)
    rows = converted(tree, tmp_path / "area")
    assert rows[0]["segments"][0]["area"] == 3 and rows[0]["segment_map"] == clean[1][0]["segment_map"] and rows[1:] == clean[1][1:]


def test_a_photo_without_segments_has_no_label(clean, tree, tmp_path):
    in_record(lambda record: record["segments_info"].clear())(tree)
    write_ids(tree.png, np.zeros_like(tree.ids))
    row = converted(tree, tmp_path / "out")[0]
    assert row["segments"] == [] and not codec.decode_segment_map(row["segment_map"]).any()
    assert (codec.decode_label_map(row["label_map"], load_vocabulary(tmp_path / "out")) == -1).all()


def test_crowds_keep_their_label_and_are_marked(clean, tree, tmp_path):
    before = clean[1][0]
    in_info(iscrowd=1)(tree)
    row = converted(tree, tmp_path / "out")[0]
    assert row["segments"][0] == before["segments"][0] | {"is_crowd": True} and row["label_map"] == before["label_map"]


def objects_of(rows) -> list[tuple[dict, np.ndarray]]:
    shape = codec.decode_segment_map(rows[0]["segment_map"]).shape
    return [(entry, mask_of_text(entry["mask"], *shape)) for entry in rows[0]["instances"]]


def test_overlapping_objects_keep_their_pixels(clean, tree, tmp_path):
    """Each object its own mask, whatever lies over it; the label map comes from the segments."""
    whole = np.ones(tree.ids.shape, dtype=bool)
    segmentation({"size": list(whole.shape), "counts": text_of_mask(whole)})(tree)
    rows = converted(tree, tmp_path / "out")
    found, before = objects_of(rows), objects_of(clean[1])
    assert found[0][1].all() and all(np.array_equal(a[1], b[1]) for a, b in zip(found[1:], before[1:], strict=True))
    assert rows[0]["label_map"] == clean[1][0]["label_map"]


@pytest.mark.parametrize("polygons, pixels", [([[-9, -9, 3, -9, 3, 3, -9, 3]], 9), ([[9000, 9000, 9005, 9000, 9005, 9005]], 0), ([], 0)])
def test_polygons_outside_the_photo_are_cut_off(tree, tmp_path, polygons, pixels):
    """What is left of them is the mask; an object without a pixel stays in the list."""
    pytest.importorskip("pycocotools")
    count = sum(record["image_id"] == tree.image["id"] for record in json.loads(tree.instances.read_text())["annotations"])
    segmentation(polygons)(tree)
    found = objects_of(converted(tree, tmp_path / "out"))
    assert len(found) == count and found[0][1].sum() == pixels == found[0][1][:3, :3].sum()


def test_an_object_without_a_pixel_counts_as_missed():
    """Of two objects of one class one can be found: recall, and with it AP, ends at one half."""
    pytest.importorskip("pycocotools")
    mask = torch.zeros(1, 6, 9, dtype=torch.bool)
    mask[:, 1:4, 2:6] = True
    entry = {"class_id": 0, "is_crowd": False, "area": 12.0, "box": [2.0, 1.0, 6.0, 4.0], "mask": text_of_mask(mask[0].numpy())}
    empty = entry | {"area": 8.5, "mask": text_of_mask(np.zeros((6, 9), dtype=bool))}
    found = InstanceSegmentation(mask, torch.tensor([0]), torch.ones(1), torch.tensor([[2.0, 1.0, 6.0, 4.0]]))
    output = SegmentationOutput(torch.zeros(6, 9, dtype=torch.long), instances=found)
    for truth, expected in (([entry], 1.0), ([entry, empty], 51 / 101)):
        evaluator = InstanceEvaluator(ClassVocabulary(("cat",)))
        evaluator.update([output], {"id": torch.tensor([0]), "native_sizes": [(6, 9)], "native_instances": [truth]})
        assert evaluator.compute()["AP"] == pytest.approx(expected, abs=1e-4)


def test_clean_rows_are_read_and_without_findings(clean, tree, tmp_path):
    rows = converted(tree, tmp_path / "out")
    vocabulary, reader = load_vocabulary(tmp_path / "out"), ShardReader.for_split(tmp_path / "out", SPLIT)
    data = SegmentationDataset(reader, vocabulary, lambda sample, rng: sample, training=False, with_segments=True, on_bad_sample="raise")
    assert [len(data[k]["native_segments"]) for k in range(len(rows))] == [len(row["segments"]) for row in rows]
    assert [item for item in examine([tmp_path / "out"], quiet=True).found if item.severity == "error"] == []
