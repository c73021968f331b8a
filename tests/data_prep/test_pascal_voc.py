"""PASCAL VOC: the numbering, the lists of its splits, the devkit's colours, and real photos."""

import argparse

import numpy as np
import pytest
from PIL import Image

from data_prep import pascal_voc, prepare
from data_prep.paired import read_class_names
from data_prep.source import SourceError
from data_prep.voc_layout import read_stems, voc_colours
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data_prep.raw_layouts import raw_pascal_voc, row_of, write_lines, write_pair

NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person plant sheep sofa train monitor"
)


def open_voc(root, split="train", no_background=False, **more):
    return pascal_voc.open_split(root, split, argparse.Namespace(no_background=no_background, **more))


def lists(root):
    return root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"


def test_numbering_with_and_without_background(tmp_path):
    raw_pascal_voc(tmp_path)
    source, objects = open_voc(tmp_path), open_voc(tmp_path, no_background=True)
    assert [sample["id"] for sample in source] == ["2007_000032", "2007_000039"]
    assert source[1]["label_map"][0].tolist() == [0, 1, 20, IGNORE_INDEX, 6]
    assert objects[1]["label_map"][0].tolist() == [IGNORE_INDEX, 0, 19, IGNORE_INDEX, 5]
    assert source.vocabulary.names == tuple(NAMES.split()) and objects.vocabulary.names == tuple(NAMES.split()[1:])
    assert source.vocabulary.thing == (False,) + (True,) * 20 and objects.vocabulary.thing == (True,) * 20
    assert objects.vocabulary.palette == source.vocabulary.palette[1:]
    photo = tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_000032.jpg"
    assert source[0]["image"] == photo.read_bytes() and source.name(0) == str(photo)


def test_palette_images_are_read_as_numbers(tmp_path):
    """A palette that is not the devkit's, and whose colours stand twice, changes nothing."""
    raw_pascal_voc(tmp_path)
    image = Image.fromarray(row_of([0, 1, 20, 255, 15]), mode="P")
    image.putpalette([7, 7, 7] * 256)
    image.save(tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000032.png")
    assert open_voc(tmp_path)[0]["label_map"][0].tolist() == [0, 1, 20, IGNORE_INDEX, 15]


def test_other_values_and_colours_are_errors(tmp_path):
    raw_pascal_voc(tmp_path)
    path = tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000032.png"
    Image.fromarray(row_of([0, 21])).save(path)
    with pytest.raises(SourceError, match="2007_000032.png: label value 21 at x 1, y 0; VOC has 0"):
        open_voc(tmp_path)[0]
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    with pytest.raises(SourceError, match="2007_000032.png: .*RGB"):
        open_voc(tmp_path)[0]


@pytest.mark.parametrize("above", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_each_layout_and_the_order_of_the_list(tmp_path, above):
    folder = tmp_path / above
    for k, stem in enumerate(("a", "b", "c")):
        write_pair(folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClass" / f"{stem}.png", row_of([k, 255]))
    write_lines(folder / "ImageSets" / "Segmentation" / "val.txt", ["c", "", "a"])
    source = open_voc(tmp_path, "val")
    assert [(sample["id"], sample["label_map"][0, 0]) for sample in source] == [("c", 2), ("a", 0)]


@pytest.mark.parametrize("name", ["train_aug", "trainaug"])
def test_the_augmented_list_reads_the_augmented_label_maps(tmp_path, name):
    raw_pascal_voc(tmp_path)
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    write_pair(folder / "JPEGImages" / "2007_000027.jpg", folder / "SegmentationClassAug" / "2007_000027.png", row_of([9, 255]))
    write_lines(lists(tmp_path) / f"{name}.txt", ["/JPEGImages/2007_000027.jpg /SegmentationClassAug/2007_000027.png"])
    source = open_voc(tmp_path, "train_aug")
    assert len(source) == 1 and source[0]["label_map"][0].tolist() == [9, IGNORE_INDEX]
    assert source.files(0)[1].endswith("SegmentationClassAug/2007_000027.png")


def test_overlapping_splits_are_written_when_named(tmp_path):
    raw_pascal_voc(tmp_path)
    write_lines(lists(tmp_path) / "val.txt", ["2007_000039"])
    write_lines(lists(tmp_path) / "trainval.txt", ["2007_000032", "2007_000039"])
    for options, splits in (([], ["train", "val"]), (["--splits", "val,trainval"], ["val", "trainval"])):
        args = prepare.parse_arguments(["pascal_voc", "--root", str(tmp_path), "--out", str(tmp_path / "out"), *options])
        assert list(prepare.open_splits(pascal_voc, args)) == splits


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of photos; expected .*VOCdevkit/VOC2012/JPEGImages or .*/JPEGImages"):
        open_voc(tmp_path)
    raw_pascal_voc(tmp_path)
    with pytest.raises(FileNotFoundError, match="Segmentation/val.txt: list of the split not found"):
        open_voc(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="train_aug.txt or .*trainaug.txt: list of the split not found"):
        open_voc(tmp_path, "train_aug")
    write_lines(lists(tmp_path) / "train_aug.txt", ["2007_000032"])
    with pytest.raises(FileNotFoundError, match="no folder of label maps; expected .*SegmentationClassAug"):
        open_voc(tmp_path, "train_aug")
    write_lines(lists(tmp_path) / "val.txt", ["2007_000032", "2007_000027", "2007_999999", "2007_000032"])
    messages = ["2007_000027.png: label map not found", "2007_999999.jpg: photo not found", "2007_000032: stands twice"]
    for message in messages:
        with pytest.raises(SourceError, match=message):
            open_voc(tmp_path, "val")
    source = open_voc(tmp_path, "val", on_bad_sample="skip")
    assert len(source) == 4 and source[0]["id"] == "2007_000032"
    for i, message in enumerate(messages, start=1):
        with pytest.raises(SourceError, match=message):
            source[i]
    write_lines(lists(tmp_path) / "val.txt", [])
    with pytest.raises(FileNotFoundError, match="val.txt: the list of the split is empty"):
        open_voc(tmp_path, "val")


def test_real_photos(real_data, tmp_path):
    """Every VOC sample of the pack: values in place against Pillow's own reading, and the devkit's palette in the files."""
    samples = real_data / "voc_samples"
    (tmp_path / "JPEGImages").symlink_to(samples / "images")
    (tmp_path / "SegmentationClass").symlink_to(samples / "class_masks")
    stems = sorted(path.stem for path in (samples / "class_masks").glob("*.png"))
    write_lines(tmp_path / "ImageSets" / "Segmentation" / "val.txt", stems)
    source = open_voc(tmp_path, "val")
    assert [sample["id"] for sample in source] == stems and len(stems) == 6
    listed, seen = (real_data / "class_lists" / "voc21.txt").read_text().splitlines(), set()
    for sample in source:
        image = Image.open(samples / "class_masks" / f"{sample['id']}.png")
        stored = np.asarray(image).astype(int)
        np.testing.assert_array_equal(sample["label_map"], np.where(stored == 255, IGNORE_INDEX, stored))
        palette = np.reshape(image.getpalette()[: 3 * 21], (-1, 3))
        np.testing.assert_array_equal(palette, source.vocabulary.palette[: len(palette)])
        seen |= set(np.unique(stored).tolist())
    renamed = {"table": "diningtable", "plant": "pottedplant", "monitor": "tvmonitor"}
    assert [renamed.get(name, name) for name in read_class_names("voc21")] == listed
    assert seen == {0, 1, 3, 5, 6, 7, 9, 15, 17, 18, 255}


def test_colours_of_the_devkit():
    """The values that the devkit's documentation and files show for some classes and for the border."""
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 4: (0, 0, 128), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    colours = voc_colours(256)
    assert {k: colours[k] for k in expected} == expected and len(set(colours)) == 256


def test_the_lists_of_the_release_are_read(real_data):
    """The pack's lists: 10,582 and 1,449 stems, in their order, none in both."""
    train, val = (read_stems([real_data / "splits" / f"voc2012_{name}.txt"]) for name in ("train_aug", "val"))
    assert (len(train), len(val)) == (10582, 1449) and not set(train) & set(val)
    assert val == (real_data / "splits" / "voc2012_val.txt").read_text().split()
