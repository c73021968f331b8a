"""PASCAL-5i, COCO-20i and FSS-1000: every layout, numbering and names, and what is missing."""

import json

import numpy as np
import pytest

from data_prep import coco20i, fss1000, pascal5i, prepare
from data_prep.source import SourceError
from ofaseg.data.class_pairs import PairChoice, choose_pairs
from ofaseg.data.folds import fold_split, own_split
from ofaseg.data.present_classes import present_classes
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data_prep.raw_layouts import raw_coco20i, raw_fss1000, raw_pascal5i, row_of, write_lines, write_pair, write_photo, write_values
from tests.toy_fusioner import make_model, make_task


def opened(module, root, split, *options):
    args = prepare.parse_arguments([module.__name__.split(".")[-1], "--root", str(root), "--out", "unused", *options])
    return module.open_split(root, split, args)


# ---- PASCAL-5i ----


def test_pascal_numbers_names_and_splits(tmp_path):
    raw_pascal5i(tmp_path)
    train, test = (opened(pascal5i, tmp_path, split) for split in ("train", "val"))
    assert [sample["id"] for sample in train] == ["2007_000032", "2008_000003"] and [sample["id"] for sample in test] == ["2007_000033"]
    assert train[1]["label_map"][0].tolist() == [0, 1, 20, IGNORE_INDEX, 6]
    names = train.vocabulary.names
    assert (names[0], names[11], names[16], names[20]) == ("background", "diningtable", "pottedplant", "tvmonitor") and len(names) == 21
    natural = opened(pascal5i, tmp_path, "val", "--natural-names").vocabulary.names
    assert (natural[11], natural[16], natural[20]) == ("dining table", "potted plant", "tv monitor")


@pytest.mark.parametrize(
    "photos, labels",
    [
        ("VOCdevkit/VOC2012", "VOCdevkit/VOC2012"),
        ("VOC2012", "VOC2012"),
        ("VOCdevkit/VOC2012", ""),
        ("VOCdevkit/VOC2012", "VOCdevkit"),
        ("", ""),
    ],
)
def test_pascal_layouts(tmp_path, photos, labels):
    for k, stem in enumerate(("b", "a")):
        label_map = tmp_path / labels / "SegmentationClassAug" / f"{stem}.png"
        write_pair(tmp_path / photos / "JPEGImages" / f"{stem}.jpg", label_map, row_of([k + 3, 255]))
    lists = tmp_path / photos / "ImageSets" / "Segmentation"
    write_lines(lists / "val.txt", ["b", "a"])
    source = opened(pascal5i, tmp_path, "val")
    assert [(sample["id"], sample["label_map"][0, 0]) for sample in source] == [("b", 3), ("a", 4)]
    write_lines(lists / "val.txt", ["b"])
    write_lines(lists / "trainaug.txt", ["a"])
    assert [sample["id"] for sample in opened(pascal5i, tmp_path, "train")] == ["a"]


def test_pascal_what_is_missing_is_named(tmp_path):
    raw_pascal5i(tmp_path)
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    (folder / "JPEGImages" / "2008_000003.jpg").unlink()
    with pytest.raises(SourceError, match="2008_000003.jpg: photo not found"):
        opened(pascal5i, tmp_path, "train")
    write_values(folder / "SegmentationClassAug" / "2007_000033.png", row_of([21]))
    with pytest.raises(SourceError, match="label value 21 at x 0, y 0; VOC has 0"):
        opened(pascal5i, tmp_path, "val")[0]
    (folder / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="val.txt: list of the split not found"):
        opened(pascal5i, tmp_path, "train")


def test_pascal_lists_of_the_data_pack_fit_the_shards(tmp_path, real_data):
    """Ten photos of a real list, drawn here, through shards: the pairs of a fold are those of the list that are there."""
    lines = (real_data / "splits" / "pascal5i" / "val" / "fold2.txt").read_text().split()[:10]
    classes: dict[str, list[int]] = {}
    for line in lines:
        stem, k = line.split("__")
        classes.setdefault(stem, []).append(int(k))
    folder = tmp_path / "raw" / "VOC2012"
    for stem, values in classes.items():
        label_map = folder / "SegmentationClassAug" / f"{stem}.png"
        write_pair(folder / "JPEGImages" / f"{stem}.jpg", label_map, row_of([0, 1, 255, *values]))
    write_lines(folder / "ImageSets" / "Segmentation" / "val.txt", classes)
    out = tmp_path / "shards"
    assert prepare.main(["pascal5i", "--root", str(tmp_path / "raw"), "--out", str(out), "--splits", "val", "--workers", "1"]) == 0
    vocabulary, reader = load_vocabulary(out), ShardReader.for_split(str(out), "val")
    present = present_classes(reader, vocabulary)
    split = fold_split(vocabulary, "pascal5i", 2)
    for source in ("official", "masks"):
        choice = PairChoice(source, "pascal5i", 2, str(real_data / "splits"))
        pairs = choose_pairs(present, vocabulary, split, choice, training=False)
        assert sorted(f"{present.ids[row]}__{k:02d}" for row, k in zip(pairs.rows, pairs.classes)) == sorted(lines)


# ---- COCO-20i ----


@pytest.mark.parametrize(
    "photos, masks",
    [
        ("train2014", "annotations/train2014"),
        ("COCO2014/train2014", "COCO2014/annotations/train2014"),
        ("train2014", "annotation/train2014"),
        ("train2014/train2014", "annotation/train2014/train2014"),
    ],
)
def test_coco_layouts_and_numbers(tmp_path, photos, masks):
    stem = "COCO_train2014_000000000009"
    write_pair(tmp_path / photos / f"{stem}.jpg", tmp_path / masks / f"{stem}.png", row_of([0, 1, 62, 80, 255]))
    write_photo(tmp_path / photos / "COCO_train2014_000000000030.jpg", 4, 5)
    source = opened(coco20i, tmp_path, "train")
    assert len(source) == 1 and source[0]["id"] == stem and source[0]["label_map"][0].tolist() == [0, 1, 62, 80, IGNORE_INDEX]
    names = source.vocabulary.names
    assert [names[k] for k in (0, 1, 10, 58, 80)] == ["background", "person", "trafficlight", "sofa", "toothbrush"] and len(names) == 81
    natural = opened(coco20i, tmp_path, "train", "--natural-names").vocabulary.names
    assert [natural[k] for k in (10, 58)] == ["traffic light", "couch"]


def test_coco_other_masks_are_refused(tmp_path):
    raw_coco20i(tmp_path)
    write_values(tmp_path / "annotations" / "train2014" / "COCO_train2014_000000000009.png", row_of([0, 81, 0, 0]))
    with pytest.raises(SourceError, match="label value 81 at x 1, y 0; COCO-20i's masks hold 0"):
        opened(coco20i, tmp_path, "train")[0]
    (tmp_path / "train2014" / "COCO_train2014_000000000025.jpg").unlink()
    with pytest.raises(SourceError, match="000000000025.jpg: photo not found"):
        opened(coco20i, tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no folder of photos; expected .*val2014"):
        opened(coco20i, tmp_path, "val")


def test_coco_drawn_from_instances(tmp_path):
    """Chosen without masks; class ids are those of the masks."""
    name = "COCO_val2014_000000000042.jpg"
    write_photo(tmp_path / "val2014" / name, 4, 6)
    categories = [{"id": 1, "name": "person"}, {"id": 63, "name": "couch"}]
    square = {"size": [4, 6], "counts": [0, 8, 16]}  # the two left columns
    annotations = [{"id": 1, "image_id": 42, "category_id": 63, "segmentation": square, "area": 8, "iscrowd": 0}]
    images = [{"id": 42, "file_name": name, "height": 4, "width": 6}]
    (tmp_path / "annotations").mkdir()
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (tmp_path / "annotations" / "instances_val2014.json").write_text(text)
    source = opened(coco20i, tmp_path, "val")
    assert source[0]["id"] == "COCO_val2014_000000000042" and source.vocabulary.names[58] == "sofa"
    np.testing.assert_array_equal(source[0]["label_map"], row_of([58, 58, 0, 0, 0, 0]))


# ---- FSS-1000 ----


def test_fss_numbers_threshold_and_novel_classes(tmp_path):
    raw_fss1000(tmp_path)
    train, test = opened(fss1000, tmp_path, "train"), opened(fss1000, tmp_path, "test")
    assert train.vocabulary.names == ("background", "ab_wheel", "whale", "zebra", "abacus"), "each list in alphabetical order"
    assert train.vocabulary.novel == (False, False, False, True, True)
    assert [sample["id"] for sample in train] == [f"{name}/{k}" for name in ("ab_wheel", "whale") for k in (1, 10, 2)]
    assert train[0]["label_map"][0].tolist() == [0, 0, 1, 1] and test[0]["label_map"][0].tolist() == [0, 0, 4, 4]
    assert opened(fss1000, tmp_path, "train", "--natural-names").vocabulary.names[1] == "ab wheel"


@pytest.mark.parametrize("above", ["FSS-1000", "fewshot_data/fewshot_data"])
def test_fss_layouts_and_lists_elsewhere(tmp_path, above):
    raw_fss1000(tmp_path / above)
    with pytest.raises(FileNotFoundError, match="trn.txt or .*splits/trn.txt: list of the train classes not found"):
        opened(fss1000, tmp_path, "val")
    source = opened(fss1000, tmp_path, "val", "--lists", str(tmp_path / above))
    assert [sample["id"] for sample in source] == ["zebra/1", "zebra/10", "zebra/2"] and source[0]["label_map"].max() == 3


def test_fss_what_is_missing_is_named(tmp_path):
    raw_fss1000(tmp_path)
    (tmp_path / "whale" / "2.png").unlink()
    with pytest.raises(SourceError, match="whale/2.png: mask of 2.jpg not found"):
        opened(fss1000, tmp_path, "train")
    write_lines(tmp_path / "val.txt", ["zebra", "yak"])
    with pytest.raises(SourceError, match="yak: no photo of this class"):
        opened(fss1000, tmp_path, "val")
    write_lines(tmp_path / "val.txt", ["whale"])
    with pytest.raises(SourceError, match="class 'whale' stands in two of the lists"):
        opened(fss1000, tmp_path, "val")


def test_fss_pairs_of_a_split(tmp_path):
    """A split's shards show its own classes; of these the novel ones are tested, although those of val are novel too."""
    raw_fss1000(tmp_path / "raw")
    out = tmp_path / "out"
    assert prepare.main(["fss1000", "--root", str(tmp_path / "raw"), "--out", str(out), "--workers", "1"]) == 0
    vocabulary = load_vocabulary(out)
    split = own_split(vocabulary)
    for name, training, expected in (("train", True, {1, 2}), ("val", False, {3}), ("test", False, {4})):
        reader = ShardReader.for_split(str(out), name)
        pairs = choose_pairs(present_classes(reader, vocabulary), vocabulary, split, PairChoice(), training)
        assert set(pairs.classes.tolist()) == expected and len(pairs) == 3 * len(expected)


def test_fss_is_trained_and_tested_in_pairs(tmp_path):
    """Training sees the classes of the train list, a test those of its split; a model takes the batches as they come."""
    raw_fss1000(tmp_path / "raw")
    out = tmp_path / "out"
    assert prepare.main(["fss1000", "--root", str(tmp_path / "raw"), "--out", str(out), "--workers", "1", "--natural-names"]) == 0
    vocabulary = load_vocabulary(out)
    held_out = [name for name, novel in zip(vocabulary.names, vocabulary.novel) if novel]
    task = make_task(tmp_path, vocabulary.names, novel=held_out, data=str(out))
    model = make_model(task)
    for split, training, names in (("train", True, {"ab wheel", "whale"}), ("test", False, {"abacus"})):
        pairs = task.pair_dataset(split, training=training)
        batch = pairs.collater([pairs[i] for i in range(len(pairs))])
        asked = {vocabulary.names[k] for k in batch["net_input"]["class_ids"].flatten().tolist()}
        assert asked == names and set(batch["target"].unique().tolist()) == {0, 1}
        assert model(**batch["net_input"]).class_logits.shape == batch["target"].shape == (len(pairs), 1, 32, 32)
