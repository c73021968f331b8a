"""Pairing by file name: partners, and a fault for every file without a clear one."""

import os
import re

import pytest

from ofaseg.data.pairs import files_by_stem, likely_endings, pair_by_stem


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def faults_of(root):
    return [(fault.file.removeprefix(f"{root}/"), str(fault)) for fault in pair_by_stem(root / "i", root / "m").faults]


def test_pairs_are_sorted_and_keep_their_folders(tmp_path):
    touch(tmp_path / "i", "b.jpg", "a.1.PNG", "sub/b.jpeg", ".hidden.jpg", "notes.txt")
    touch(tmp_path / "m", "b.png", "a.1.png", "sub/b.json", "._b.png")
    pairing = pair_by_stem(tmp_path / "i", tmp_path / "m")
    assert [pair.stem for pair in pairing.pairs] == ["a.1", "b", "sub/b"] and not pairing.faults
    assert pairing.pairs[2].image == tmp_path / "i" / "sub" / "b.jpeg" and pairing.pairs[2].label_map == tmp_path / "m" / "sub" / "b.json"


def test_endings_are_no_part_of_the_stem(tmp_path):
    touch(tmp_path / "i", "x_photo.png", "x_other.png")
    touch(tmp_path / "m", "x_ids.png", "x_colour.png")
    pairing = pair_by_stem(tmp_path / "i", tmp_path / "m", "_photo", "_ids")
    assert pairing.pairs == [("x", tmp_path / "i" / "x_photo.png", tmp_path / "m" / "x_ids.png")] and not pairing.faults


@pytest.mark.parametrize(
    "images, maps, file, message",
    [
        (["a.jpg"], [], "i/a.jpg", "photo without a label map; expected .*m/a.png"),
        ([], ["a.png"], "m/a.png", "label map without a photo; put a.jpg"),
        (["a.jpg", "a.png"], ["a.png"], "i/a.png", r"2 photos of the same name \(a.jpg, a.png\); keep one"),
        (["a.jpg"], ["a.json", "a.png"], "m/a.png", r"2 label maps of the same name \(a.json, a.png\); keep one"),
        (["Car.jpg"], ["car.png"], "m/car.png", "i/Car.jpg differ in capitals only; rename one"),
        (["a.jpg"], ["a.jpg"], "m/a.jpg", "a JPEG cannot be a label map"),
        (["s/a.jpg"], ["t/a.png"], "i/s/a.jpg", "photo without a label map; expected .*m/s/a.png"),
    ],
)
def test_faults(tmp_path, images, maps, file, message):
    (tmp_path / "i").mkdir()
    (tmp_path / "m").mkdir()
    touch(tmp_path / "i", "good.jpg", *images)
    touch(tmp_path / "m", "good.png", *maps)
    pairing = pair_by_stem(tmp_path / "i", tmp_path / "m")
    assert [pair.stem for pair in pairing.pairs] == ["good"]
    found = dict(faults_of(tmp_path))
    assert re.search(message, found.pop(file))
    assert len(found) == (1 if images == ["s/a.jpg"] else 0)  # the lone map in another folder is a fault of its own


@pytest.mark.parametrize(
    "name, shown, problem",
    [
        (b"caf\xe9", r"caf\xe9", "not UTF-8"),
        (b"old\xff/a", r"old\xff/a", "not UTF-8"),
        (b"a\tb", r"a\tb", "has a tab or line break"),
        (b"a\nb", r"a\nb", "has a tab or line break"),
    ],
)
def test_names_that_no_sample_can_have(tmp_path, name, shown, problem):
    touch(tmp_path / "i", "naïve 猫.jpg", os.fsdecode(name + b".jpg"))
    touch(tmp_path / "m", "naïve 猫.png", os.fsdecode(name + b".png"))
    pairing = pair_by_stem(tmp_path / "i", tmp_path / "m")
    assert [pair.stem for pair in pairing.pairs] == ["naïve 猫"]
    for fault, path in zip(pairing.faults, (f"i/{shown}.jpg", f"m/{shown}.png"), strict=True):
        assert fault.file == f"{tmp_path}/{path}" and problem in str(fault) and str(fault).endswith("; rename the file or its folder")
        str(fault).encode("utf-8")


def test_one_of_two_names_in_other_capitals_is_the_partner(tmp_path):
    touch(tmp_path / "i", "A.jpg", "a.jpg")
    touch(tmp_path / "m", "A.png", "a.png")
    assert [pair.stem for pair in pair_by_stem(tmp_path / "i", tmp_path / "m").pairs] == ["A", "a"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        files_by_stem(tmp_path / "nowhere", (".png",))


@pytest.mark.parametrize("photo, label, option", [("", "_mask", "--label-ending _mask"), ("_a", "", "--image-ending _a"), ("x", "y", "")])
def test_likely_endings(tmp_path, photo, label, option):
    for k in range(1, 13):
        for folder, name in (("i", f"scene{k}{photo}.jpg"), ("m", f"scene{k}{label}.png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"")
    assert likely_endings(tmp_path / "i", tmp_path / "m") == option


def test_names_that_differ_in_how_accents_are_stored(tmp_path):
    for folder, name in (("i", "\u00dcbung.jpg"), ("m", "U\u0308bung.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"")
    pairing = pair_by_stem(tmp_path / "i", tmp_path / "m")
    assert not pairing.pairs and len(pairing.faults) == 1
    assert "differ in how accents are stored only (Unicode NFC and NFD" in str(pairing.faults[0])
