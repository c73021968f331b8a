import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import prepare
from ofaseg.cli import main
from ofaseg.data import codec
from ofaseg.doctor.findings import CODES, SEVERITIES
from ofaseg.vocabulary import ClassVocabulary
from tests.faults.corpus import VOCABULARY, clean_row, edit_vocabulary, write_clean_folder, write_clean_shards, write_unchecked
from tests.toy import NAMES

FINDING = {"severity": str, "code": str, "file": str, "row": (int, type(None)), "column": str, "message": str, "cure": str}


@pytest.fixture
def broken(tmp_path):
    """Eight rows, of which four have the same fault and one another."""
    rows = [clean_row(k) | ({"image": b"not a picture %d" % k} if k < 4 else {}) for k in range(8)]
    rows[5]["label_map"] = None
    write_unchecked(tmp_path / "data", rows)
    return tmp_path / "data"


def test_clean_data_exits_with_0(tmp_path, capsys):
    write_clean_shards(tmp_path / "data")
    assert main(["doctor", str(tmp_path / "data"), "--workers", "1", "--quiet"]) == 0
    assert capsys.readouterr().out == "8 samples looked at: 0 errors, 0 warnings, 0 notes\n"


def test_errors_exit_with_1_and_are_grouped(broken, capsys):
    assert main(["doctor", str(broken), "--workers", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1] == "8 samples looked at: 5 errors, 0 warnings, 0 notes"
    assert f"error [bad_image] {broken / 'train.tsv'}, row 0, column image: not an image" in lines[0]
    assert lines[0].endswith("store a JPEG or PNG file (and 3 more like it)")


def test_json_has_every_finding_of_the_documented_form(broken, tmp_path, capsys):
    assert main(["doctor", str(broken), "--workers", "1", "--json", "-", "--quiet"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"format", "version", "paths", "samples", "counts", "findings", "left_out"}
    assert (report["format"], report["version"], report["samples"], report["left_out"]) == ("ofaseg-doctor", 1, 8, 0)
    assert report["paths"] == [str(broken)] and report["counts"] == {"error": 5, "warning": 0, "note": 0}
    for item in report["findings"]:
        assert set(item) == set(FINDING) and all(isinstance(item[key], kind) for key, kind in FINDING.items())
        assert item["code"] in CODES and item["severity"] in SEVERITIES
    assert [item["row"] for item in report["findings"]] == [0, 1, 2, 3, 5]
    main(["doctor", str(broken), "--workers", "1", "--json", str(tmp_path / "report.json"), "--quiet"])
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_findings_beyond_the_limit_are_counted(broken, capsys):
    main(["doctor", str(broken), "--workers", "1", "--json", "-", "--max-findings", "2", "--quiet"])
    report = json.loads(capsys.readouterr().out)
    assert len(report["findings"]) == 3 and report["left_out"] == 2 and report["counts"]["error"] == 5


def test_wrong_command_lines_exit_with_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 2
    assert main(["doctor", str(tmp_path), "--workers", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path), "--label-offset", "-1"]) == 2
    assert "--label-offset -1 is outside 0..65535" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["doctor", str(tmp_path), "--ignore", "none"])
    assert "comma list of label values" in capsys.readouterr().err


def test_several_paths_of_different_kinds(broken, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("cat\ncat\n")
    assert main(["doctor", str(tmp_path / "names.txt"), str(broken), str(tmp_path / "missing"), "--workers", "1", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert all(f"[{code}]" in out for code in ("bad_vocabulary", "bad_image", "missing_path"))


def test_labels_that_count_from_1_get_the_fix(tmp_path, capsys):
    """The fix that is suggested makes the folder clean."""
    rows = [clean_row(k) for k in range(8)]
    from_one = ClassVocabulary(NAMES, label_offset=1, ignore_label=0)
    for row in rows:
        row["label_map"] = codec.encode_label_map(codec.decode_label_map(row["label_map"], VOCABULARY), from_one)
    write_unchecked(tmp_path, rows)
    assert main(["doctor", str(tmp_path), "--workers", "1", "--quiet"]) == 1
    assert "set label_offset to 1 and ignore_index to 0 in vocabulary.json (reduce zero label)" in capsys.readouterr().out
    edit_vocabulary(tmp_path, label_offset=1, ignore_index=0)
    assert main(["doctor", str(tmp_path), "--workers", "1", "--quiet"]) == 0


@pytest.mark.parametrize("unlabelled, flags", [(0, "--label-offset 1 --ignore 0"), (255, "--label-offset 1 --ignore 0,255")])
def test_folders_whose_labels_count_from_1_get_flags_that_help(unlabelled, flags, tmp_path, capsys):
    """The flags make the doctor content, and the converter takes them, too."""
    root = write_clean_folder(tmp_path / "raw")
    for path in (root / "labels").rglob("*.png"):
        image = Image.open(path).point(lambda value: unlabelled if value == 255 else value + 1)
        image.putpixel((0, 0), 0)
        image.save(path)
    assert main(["doctor", str(root), "--workers", "1", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert f"give {flags} to the doctor and to the converter" in out and "ignore_index" not in out and "vocabulary.json" not in out
    assert main(["doctor", str(root), "--workers", "1", "--quiet", *flags.split()]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert prepare.main(["folder", "--root", str(root), "--out", str(tmp_path / "out"), "--workers", "1", *flags.split()]) == 0


def test_a_folder_with_a_second_value_without_label_is_told_to_ignore_both(tmp_path, capsys):
    root = write_clean_folder(tmp_path / "raw")
    flags = ["--label-offset", "0", "--ignore", "9"]
    assert main(["doctor", str(root), "--workers", "1", "--quiet", *flags]) == 1
    assert "give --ignore 9,255 to the doctor" in capsys.readouterr().out
    assert main(["doctor", str(root), "--workers", "1", "--quiet", "--ignore", "9,255"]) == 0


def test_a_folder_whose_label_maps_have_an_ending(tmp_path, capsys):
    root = write_clean_folder(tmp_path / "raw")
    maps = list((root / "labels").rglob("*.png"))
    for path in maps:
        path.rename(path.with_stem(path.stem + "_mask"))
    assert main(["doctor", str(root), "--workers", "1", "--quiet"]) == 1
    assert "give --label-ending _mask to the doctor and to the converter" in capsys.readouterr().out
    assert main(["doctor", str(root), "--workers", "1", "--quiet", "--label-ending", "_mask"]) == 0
    assert capsys.readouterr().out.startswith(f"{len(maps)} samples looked at: 0 errors")


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_drawn_scenes_have_no_finding(tmp_path, format, capsys):
    arguments = ["shapes", "--out", str(tmp_path / "shards"), "--format", format, "--num", "train=12,val=6,test=6", "--seed", "1"]
    assert prepare.main(arguments) == 0
    capsys.readouterr()
    assert main(["doctor", str(tmp_path / "shards"), "--workers", "1", "--json", "-", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 24 and {item["code"] for item in report["findings"]} <= {"unused_class"}


def test_real_photos_have_no_finding(real_data, capsys):
    assert main(["doctor", str(real_data / "camvid"), "--workers", "2", "--json", "-", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 701
    assert [item for item in report["findings"] if item["severity"] != "note"] == []


def test_ade20k_as_published_is_told_from_a_list_that_counts_from_0(real_data, tmp_path, capsys):
    source = real_data / "ade20k_samples"
    for name in ("images", "labels"):
        (tmp_path / name).symlink_to(source / name)
    (tmp_path / "classes.txt").write_text((real_data / "class_lists" / "ade150.txt").read_text())
    main(["doctor", str(tmp_path), "--workers", "1", "--json", "-", "--quiet", "--label-offset", "1", "--ignore", "0"])
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] >= 3 and report["counts"]["error"] == report["counts"]["warning"] == 0


def raw_folder(root, images, labels, names) -> str:
    """A raw folder of real photos (links) and a class list; returns its path."""
    root.mkdir()
    (root / "images").symlink_to(images)
    (root / "labels").symlink_to(labels)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return str(root)


def findings_of(path, capsys, *options) -> list[dict]:
    """The errors and warnings of one path."""
    main(["doctor", str(path), "--workers", "1", "--json", "-", "--quiet", *options])
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] >= 3
    return [item for item in report["findings"] if item["severity"] != "note"]


def test_real_maps_with_their_class_list_have_no_finding(real_data, tmp_path, capsys):
    voc, coco, lists = real_data / "voc_samples", real_data / "coco_mini", real_data / "class_lists"
    voc21, coco80 = ((lists / name).read_text().splitlines() for name in ("voc21.txt", "coco80.txt"))
    assert findings_of(raw_folder(tmp_path / "voc", voc / "images", voc / "class_masks", voc21), capsys) == []
    split = (coco / "val2017", coco / "semseg80" / "val2017")
    assert findings_of(raw_folder(tmp_path / "coco", *split, ["background", *coco80]), capsys) == []
    found = findings_of(raw_folder(tmp_path / "without_background", *split, coco80), capsys)
    assert {item["code"] for item in found} == {"label_range", "reduce_zero_label"}
    shifted = findings_of(tmp_path / "without_background", capsys, "--label-offset", "1", "--ignore", "0,255")
    assert {item["code"] for item in shifted} <= {"no_label"}  # two photos without an object


@pytest.mark.parametrize("photos, code", [("ADE_val_*", "maybe_shifted"), ("ADE_*", "reduce_zero_label")])
def test_ade20k_read_from_0_is_doubtful_and_where_the_last_class_occurs_wrong(photos, code, real_data, tmp_path, capsys):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        for path in (real_data / "ade20k_samples" / name).glob(photos):
            (tmp_path / name / path.name).symlink_to(path)
    names = (real_data / "class_lists" / "ade150.txt").read_text().splitlines()
    found = findings_of(raw_folder(tmp_path / "raw", tmp_path / "images", tmp_path / "labels", names), capsys)
    assert {item["code"] for item in found} - {"label_range"} == {code}


def test_a_real_map_as_a_mask_of_0_and_255_is_an_error(real_data, tmp_path, capsys):
    """Objects of VOC as people export masks: white on black."""
    voc = real_data / "voc_samples"
    (tmp_path / "masks").mkdir()
    for path in (voc / "class_masks").glob("*.png"):
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where((values > 0) & (values < 255), 255, 0).astype(np.uint8)).save(tmp_path / "masks" / path.name)
    found = findings_of(raw_folder(tmp_path / "raw", voc / "images", tmp_path / "masks", ["background", "person"]), capsys)
    assert [(item["code"], item["severity"]) for item in found] == [("stretched_labels", "error")]


def test_the_page_lists_every_code():
    text = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| `")]
    listed = {code.strip(" `"): (severity.strip(), meaning.strip()) for code, severity, meaning in rows}
    assert listed == {code: tuple(entry) for code, entry in CODES.items()}
