"""A user's own folder: splits, options, all kinds of label maps, and real data in this layout."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep import prepare
from data_prep.folder import choose_by_hash
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data_prep.raw_layouts import CLASSES, row_of, write_pair, write_photo


def run(root, out, *options, command="folder"):
    return prepare.main([command, "--root", str(root), "--out", str(out), "--workers", "1", *map(str, options)])


def write(root, split="", stems=("a", "b"), values=(0, 1, 2, 255), classes=CLASSES):
    for k, stem in enumerate(stems):
        write_pair(root / "images" / split / f"{stem}.jpg", root / "labels" / split / f"{stem}.png", row_of(values), k)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")


def decoded(out, split, i=0):
    return codec.decode_label_map(ShardReader.for_split(out, split)[i]["label_map"], load_vocabulary(out))


def test_split_folders_are_the_splits(tmp_path, caplog):
    for split, stems in (("train", ("a", "b")), ("val2017", ("c",))):
        write(tmp_path / "raw", split, stems)
    write_photo(tmp_path / "raw" / "images" / "test" / "x.jpg", 3, 4)
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "vocabulary.json").read_text())["num_rows"] == {"train": 2, "val": 1}
    assert "images/test: the folder is left out, for there is no" in caplog.text
    row = ShardReader.for_split(tmp_path / "out", "valid")[0]
    assert row["label_map"] == (tmp_path / "raw" / "labels" / "val2017" / "c.png").read_bytes()
    assert decoded(tmp_path / "out", "train")[0].tolist() == [0, 1, 2, IGNORE_INDEX]


def test_photos_beside_split_folders_are_left_out_with_one_warning(tmp_path, caplog):
    for split in ("train", "val", ""):
        write(tmp_path / "raw", split)
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    assert caplog.text.count("2 photos (first a.jpg) lie beside the split folders train, val: left out") == 1
    assert [len(ShardReader.for_split(tmp_path / "out", split)) for split in ("train", "val")] == [2, 2]


@pytest.mark.parametrize(
    "folders, splits",
    [
        (["training", "validation", "testing"], ["train", "test", "val"]),
        (["train2017", "val2017"], ["train", "val"]),
        (["Train", "trainval"], ["train", "trainval"]),
        (["train2014", "train2017", "val2017"], ["train2014", "train2017", "val"]),
        (["train", "train2017"], ["train", "train2017"]),
    ],
)
def test_splits_have_the_names_that_training_looks_for(tmp_path, folders, splits):
    for folder in folders:
        write(tmp_path / "raw", folder, [folder])
    args = prepare.parse_arguments(["folder", "--root", str(tmp_path / "raw"), "--out", str(tmp_path / "out")])
    sources = prepare.open_splits(prepare.load_dataset_module("folder"), args)
    assert list(sources) == splits
    assert sorted(source[0]["id"] for source in sources.values()) == sorted(folders)


def test_without_split_folders_each_stem_has_its_place(tmp_path):
    stems = [f"photo{k}" for k in range(40)]
    write(tmp_path / "raw", stems=stems)
    assert run(tmp_path / "raw", tmp_path / "out", "--val-fraction", 0.3) == 0
    found = {split: {row["id"] for row in ShardReader.for_split(tmp_path / "out", split)} for split in ("train", "val")}
    assert found["train"] | found["val"] == set(stems) and not found["train"] & found["val"] and 4 <= len(found["val"]) <= 20
    more = choose_by_hash([*stems, "new"], 0.3, "val")
    assert more - {"new"} == found["val"]  # another photo moves none
    assert run(tmp_path / "raw", tmp_path / "all", "--val-fraction", 0) == 0
    assert len(ShardReader.for_split(tmp_path / "all", "train")) == 40


def test_neither_part_is_empty_when_there_are_two_photos():
    for fraction in (1e-9, 1 - 1e-9):
        parts = [choose_by_hash(["a", "b"], fraction, split) for split in ("train", "val")]
        assert [len(part) for part in parts] == [1, 1] and parts[0] | parts[1] == {"a", "b"}


def test_offset_and_several_ignored_values(tmp_path):
    write(tmp_path / "raw", "train", values=(0, 1, 3, 255))
    assert run(tmp_path / "raw", tmp_path / "out", "--label-offset", 1, "--ignore", "0,255") == 0
    assert decoded(tmp_path / "out", "train")[0].tolist() == [IGNORE_INDEX, 0, 2, IGNORE_INDEX]


def test_other_names_of_folders_and_classes(tmp_path):
    write(tmp_path / "raw", "train")
    (tmp_path / "raw" / "classes.txt").unlink()
    (tmp_path / "raw" / "labels").rename(tmp_path / "raw" / "maps")
    shutil.move(tmp_path / "raw" / "images" / "train", tmp_path / "raw" / "train")
    names = ["--class-names", ",".join(CLASSES)]
    assert run(tmp_path / "raw", tmp_path / "out", "--images", ".", "--label-maps", "maps", *names) == 0
    assert len(ShardReader.for_split(tmp_path / "out", "train")) == 2


def test_labelme_files(tmp_path):
    write_photo(tmp_path / "raw" / "images" / "train" / "a.jpg", 6, 9)
    (tmp_path / "raw" / "classes.txt").write_text("car\ntree\n")
    shapes = [{"label": "tree", "points": [[1, 1], [4, 1], [4, 3], [1, 3]], "shape_type": "polygon"}]
    label = tmp_path / "raw" / "labels" / "train" / "a.json"
    label.parent.mkdir(parents=True)
    label.write_text(json.dumps({"imageHeight": 6, "imageWidth": 9, "shapes": shapes}))
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    expected = np.full((6, 9), IGNORE_INDEX)
    expected[1:4, 1:5] = 1
    np.testing.assert_array_equal(decoded(tmp_path / "out", "train"), expected)


def test_colour_coded_maps(tmp_path):
    write_photo(tmp_path / "raw" / "images" / "train" / "a.jpg", 1, 3)
    label = tmp_path / "raw" / "labels" / "train" / "a.png"
    label.parent.mkdir(parents=True)
    Image.fromarray(np.array([[[9, 9, 9], [0, 0, 0], [200, 0, 0]]], np.uint8)).save(label)
    palette = tmp_path / "palette.txt"
    palette.write_text("car 200 0 0\nroad 9 9 9\nvoid 0 0 0\n")
    assert run(tmp_path / "raw", tmp_path / "a", "--palette", palette) == 0
    assert load_vocabulary(tmp_path / "a").names == ("car", "road", "void") and decoded(tmp_path / "a", "train").tolist() == [[1, 2, 0]]
    assert run(tmp_path / "raw", tmp_path / "b", "--palette", palette, "--class-names", "road,car") == 0
    assert load_vocabulary(tmp_path / "b").palette == ((9, 9, 9), (200, 0, 0))
    assert decoded(tmp_path / "b", "train").tolist() == [[0, IGNORE_INDEX, 1]]


def break_nothing(root):
    pass


@pytest.mark.parametrize(
    "spoil, options, message",
    [
        (lambda root: (root / "classes.txt").unlink(), [], "classes.txt: no class names; write one per line there"),
        (lambda root: shutil.rmtree(root / "images"), [], "no folder of photos (--images); expected"),
        (lambda root: (root / "labels" / "train" / "a.png").rename(root / "labels" / "train" / "A.png"), [], "differ in capitals only"),
        (lambda root: (root / "classes.txt").write_text("sky\ncar\n"), [], "a.png: label value 2 (first at x 2, y 0) is no class"),
        (break_nothing, ["--val-fraction", "1"], "--val-fraction 1.0 is outside 0..1"),
        (break_nothing, ["--label-offset", "-2"], "--label-offset -2 is negative"),
        (break_nothing, ["--palette", "nowhere"], "nowhere: the palette cannot be read"),
        (break_nothing, ["--splits", "test"], "folder has no split 'test'; choose from train"),
    ],
)
def test_errors(tmp_path, capsys, spoil, options, message):
    write(tmp_path / "raw", "train")
    spoil(tmp_path / "raw")
    assert run(tmp_path / "raw", tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err


def test_one_photo_cannot_be_divided(tmp_path, capsys):
    write(tmp_path / "raw", stems=("a",))
    assert run(tmp_path / "raw", tmp_path / "out") == 1
    assert "one photo cannot be divided into train and val; give --val-fraction 0" in capsys.readouterr().err


def test_faulty_files_can_be_left_out_and_are_counted_once(tmp_path):
    write(tmp_path / "raw", stems=[f"p{k}" for k in range(10)])
    write_photo(tmp_path / "raw" / "images" / "lone.jpg", 3, 4)
    assert run(tmp_path / "raw", tmp_path / "refused") == 1
    assert run(tmp_path / "raw", tmp_path / "out", "--on-bad-sample", "skip") == 0
    assert sum(len(ShardReader.for_split(tmp_path / "out", split)) for split in ("train", "val")) == 10


@pytest.mark.parametrize("split", ["", "train"])
def test_names_that_are_no_text_are_named_or_left_out(tmp_path, capsys, split):
    write(tmp_path / "raw", split, stems=["a", "b", os.fsdecode(b"caf\xe9"), "tab\tbed"])
    assert run(tmp_path / "raw", tmp_path / "refused") == 1
    error = capsys.readouterr().err
    assert r"caf\xe9.jpg: its name is not UTF-8; rename the file" in error and r"tab\tbed.png: its name has a tab" in error
    assert run(tmp_path / "raw", tmp_path / "out", "--on-bad-sample", "skip") == 0
    rows = json.loads((tmp_path / "out" / "vocabulary.json").read_text())["num_rows"]
    assert sum(rows.values()) == 2
    skipped = json.loads((tmp_path / "out" / "summary_train.json").read_text())["skipped"]
    assert any("not UTF-8" in str(entry) for entry in skipped)


def test_palette_pngs_of_voc(real_data, tmp_path):
    for split in ("images", "labels"):
        (tmp_path / "raw" / split).mkdir(parents=True)
    source = real_data / "voc_samples"
    (tmp_path / "raw" / "images" / "val").symlink_to(source / "images")
    (tmp_path / "raw" / "labels" / "val").symlink_to(source / "class_masks")
    shutil.copy(real_data / "class_lists" / "voc21.txt", tmp_path / "raw" / "classes.txt")
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    reader, vocabulary = ShardReader.for_split(tmp_path / "out", "val"), load_vocabulary(tmp_path / "out")
    assert len(reader) == 6 and vocabulary.names[15] == "person"
    for row in reader:
        data = (source / "class_masks" / f"{row['id']}.png").read_bytes()
        assert row["label_map"] == data
        stored = np.asarray(Image.open(source / "class_masks" / f"{row['id']}.png")).astype(int)
        np.testing.assert_array_equal(codec.decode_label_map(data, vocabulary), np.where(stored == 255, IGNORE_INDEX, stored))


@pytest.mark.slow
def test_coco_mini(real_data, tmp_path):
    """Photos beside their folder of label maps, values 1..80, 0 and 255 without label."""
    root = real_data / "coco_mini"
    options = ["--images", ".", "--label-maps", "semseg80", "--label-offset", "1", "--ignore", "0,255"]
    assert run(root, tmp_path / "out", *options) == 0
    for split, folder, count in (("train", "train2017", 130), ("val", "val2017", 128)):
        reader = ShardReader.for_split(tmp_path / "out", split)
        assert len(reader) == count
        for i in range(0, count, 16):
            row = reader[i]
            assert row["image"] == (root / folder / f"{row['id']}.jpg").read_bytes()
            stored = np.asarray(Image.open(root / "semseg80" / folder / f"{row['id']}.png")).astype(int)
            expected = np.where((stored == 0) | (stored == 255), IGNORE_INDEX, stored - 1)
            np.testing.assert_array_equal(codec.decode_label_map(row["label_map"], load_vocabulary(tmp_path / "out")), expected)
    present = json.loads((tmp_path / "out" / "vocabulary.json").read_text())["names"]
    assert present == (root / "classes.txt").read_text().split("\n")[:80]


def test_endings_of_names(tmp_path):
    """a_photo.png with a_mask.png; what ends otherwise is left out."""
    write(tmp_path / "raw", "train")
    for part, ending in (("images", "_photo"), ("labels", "_mask")):
        for path in list((tmp_path / "raw" / part / "train").iterdir()):
            path.rename(path.with_name(f"{path.stem}{ending}{path.suffix}"))
    write_photo(tmp_path / "raw" / "images" / "train" / "a_depth.jpg", 3, 4)
    assert run(tmp_path / "raw", tmp_path / "out") != 0
    assert run(tmp_path / "raw", tmp_path / "out", "--image-ending", "_photo", "--label-ending", "_mask") == 0
    assert [row["id"] for row in ShardReader.for_split(tmp_path / "out", "train")] == ["a", "b"]


def test_an_ending_that_would_pair_is_named(tmp_path, caplog, capsys):
    write(tmp_path / "raw", "train", [f"photo{k}" for k in range(1, 13)])
    for path in list((tmp_path / "raw" / "labels" / "train").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_mask"))
    assert run(tmp_path / "raw", tmp_path / "out") != 0
    assert "no label map has the name of a photo" in caplog.text + capsys.readouterr().err


def test_a_blank_line_among_the_names_is_refused(tmp_path, caplog, capsys):
    """The names after it would be those of other label values than their lines say."""
    write(tmp_path / "raw", "train")
    (tmp_path / "raw" / "classes.txt").write_text("\n" + "\n".join(CLASSES) + "\n")
    assert run(tmp_path / "raw", tmp_path / "out") != 0
    assert "line 1 is blank" in caplog.text + capsys.readouterr().err


def test_with_many_classes_the_value_without_label_has_to_be_said(tmp_path, caplog, capsys):
    write(tmp_path / "raw", "train", values=(0, 1, 2), classes=[f"thing {'abcdefghij'[k // 26]}{k % 26}" for k in range(256)])
    assert run(tmp_path / "raw", tmp_path / "out") != 0
    assert "255 is not free for pixels without a label; say which value these have: --ignore 65535" in caplog.text + capsys.readouterr().err
    assert run(tmp_path / "raw", tmp_path / "out", "--ignore", "65535") == 0


def test_a_long_list_of_names_is_no_file_name(tmp_path):
    write(tmp_path / "raw", "train")
    (tmp_path / "raw" / "classes.txt").unlink()
    names = ", ".join(f"a class with quite a long name of its own, number {k}".replace(",", "") for k in range(12))
    assert run(tmp_path / "raw", tmp_path / "out", "--class-names", names) == 0


def test_photos_of_every_format_that_is_read(tmp_path):
    for suffix in codec.PHOTO_SUFFIXES:
        photo, label_map = (tmp_path / "raw" / part / "train" / f"photo_{suffix[1:]}" for part in ("images", "labels"))
        write_pair(photo.with_suffix(".png"), label_map.with_suffix(".png"), row_of((0, 1, 2, 255)), 0)
        image = Image.open(photo.with_suffix(".png")).convert("L" if suffix == ".pgm" else "RGB")
        photo.with_suffix(".png").unlink()
        image.save(photo.with_suffix(suffix), "JPEG" if suffix == ".jfif" else None)
    (tmp_path / "raw" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    rows = ShardReader.for_split(tmp_path / "out", "train")
    assert len(rows) == len(codec.PHOTO_SUFFIXES)
    assert {codec.decode_image(rows[i]["image"]).shape for i in range(len(rows))} == {(4, 4, 3)}
