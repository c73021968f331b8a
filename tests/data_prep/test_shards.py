"""Shards as a source: the other format, other files, official TSVs."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from data_prep import prepare
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader, load_vocabulary
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data_prep.raw_layouts import row_of, write_pair, write_shards


def run(root, out, *options):
    return prepare.main(["shards", "--root", str(root), "--out", str(out), "--workers", "1", *map(str, options)])


def describe(root):
    return json.loads((Path(root) / "vocabulary.json").read_text())


@pytest.mark.parametrize("formats", [("tsv", "parquet"), ("parquet", "tsv")])
def test_there_and_back_is_lossless(tmp_path, formats):
    there, back = formats
    write_shards(tmp_path / "a", there)
    assert run(tmp_path / "a", tmp_path / "b", "--format", back, "--rows-per-shard", 2) == 0
    assert run(tmp_path / "b", tmp_path / "c", "--format", there, "--rows-per-shard", 3) == 0
    first, second, third = (describe(tmp_path / name) for name in "abc")
    assert first["content_hash"] == second["content_hash"] == third["content_hash"]
    assert (first["format"], second["format"]) == formats and first["names"] == second["names"] and first["novel"] == second["novel"]
    assert list(ShardReader.for_split(tmp_path / "a", "train")) == list(ShardReader.for_split(tmp_path / "c", "train"))
    files = [sorted(path for path in (tmp_path / name).glob(f"train-*.{there}")) for name in "ac"]
    assert len(files[0]) == len(files[1]) == 2
    for old, new in zip(*files):
        assert old.read_bytes() == new.read_bytes()


def official_tsv(tmp_path, alphabet=base64.b64encode):
    values = [row_of([0, 1, 2, 3]), row_of([3, 0, 255, 1])]
    lines = []
    for k, value in enumerate(values):
        photo, label_map = tmp_path / f"{k}.png", tmp_path / f"{k}_map.png"
        write_pair(photo, label_map, value, k)
        lines.append("\t".join([alphabet(photo.read_bytes()).decode(), alphabet(label_map.read_bytes()).decode(), f"im{k}", str(k + 1)]))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "unseen_val.tsv").write_text("\n".join(lines))  # no line break at the end, as IFSeg writes it
    return tmp_path / "raw"


@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_official_tsv(tmp_path, alphabet, whole_folder):
    root = official_tsv(tmp_path, alphabet)
    assert run(root if whole_folder else root / "unseen_val.tsv", tmp_path / "out", "--class-names", "sky,grass,car") == 0
    reader, vocabulary = ShardReader.for_split(tmp_path / "out", "unseen_val"), load_vocabulary(tmp_path / "out")
    assert [row["id"] for row in reader] == ["im0", "im1"] and reader[1]["image"] == (tmp_path / "1.png").read_bytes()
    label_maps = [codec.decode_label_map(row["label_map"], vocabulary)[0].tolist() for row in reader]
    assert label_maps == [[IGNORE_INDEX, 0, 1, 2], [2, IGNORE_INDEX, IGNORE_INDEX, 0]]


def test_official_tsv_needs_names_and_the_right_number_of_them(tmp_path, capsys):
    root = official_tsv(tmp_path)
    assert run(root, tmp_path / "out") == 1
    assert "no class names beside the shards; give them in label order by --class-names" in capsys.readouterr().err
    assert run(root, tmp_path / "out", "--class-names", "sky,grass") == 1
    assert "label value 3" in capsys.readouterr().err


def test_captions_only_need_no_classes(tmp_path):
    from ofaseg.data.shards import ShardWriter

    with ShardWriter(tmp_path / "a", "train", None, ("image", "id", "captions"), "tsv") as writer:
        for k in range(2):
            image = codec.encode_image(np.full((3, 4, 3), k, np.uint8))
            writer.write({"image": image, "id": str(k), "captions": ["a photo"]})
    assert run(tmp_path / "a", tmp_path / "b", "--format", "parquet") == 0
    assert describe(tmp_path / "a")["content_hash"] == describe(tmp_path / "b")["content_hash"]


def test_errors(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out") == 1
    assert "empty: no .tsv or .parquet file; give the folder of the shards" in capsys.readouterr().err
    write_shards(tmp_path / "a")
    assert run(tmp_path / "a", tmp_path / "out", "--class-names", "one,two,three") == 1
    assert "disagree, first at class 0" in capsys.readouterr().err
    path = sorted((tmp_path / "a").glob("*.tsv"))[1]
    path.write_bytes(path.read_bytes().replace(b"\t", b"\t!", 1))
    assert run(tmp_path / "a", tmp_path / "out") == 1
    assert "train-00001-of-00002.tsv, row 0, column label_map: not valid base64" in capsys.readouterr().err


def test_novel_classes_are_marked(tmp_path):
    write_shards(tmp_path / "a", "parquet")
    assert run(tmp_path / "a", tmp_path / "b", "--novel", "car, sky") == 0
    assert load_vocabulary(tmp_path / "b").novel == (True, False, True)
    assert run(official_tsv(tmp_path), tmp_path / "c", "--class-names", "a, b, c", "--novel", "b") == 0
    assert load_vocabulary(tmp_path / "c").novel == (False, True, False)


def test_novel_classes_need_names(tmp_path, capsys):
    assert run(official_tsv(tmp_path), tmp_path / "c", "--novel", "b") == 1
    assert "--novel needs class names" in capsys.readouterr().err
