"""Regions of shards: which boxes are kept, which pixels are theirs, and what is wrong with shards."""

import numpy as np
import pytest

from data_prep import prepare, regions
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader, ShardWriter
from tests.data.sample_rows import VOCABULARY, make_row
from tests.data_prep.raw_layouts import raw_regions, write_shards


def run(root, out, *options):
    return prepare.main(["regions", "--root", str(root), "--out", str(out), "--workers", "1", *map(str, options)])


def test_boxes_become_photos_with_captions(tmp_path):
    raw_regions(tmp_path / "raw")
    assert run(tmp_path / "raw", tmp_path / "out", "--min-side", 2) == 0
    photos, found = ShardReader.for_split(tmp_path / "raw", "train"), ShardReader.for_split(tmp_path / "out", "train")
    assert [(row["id"], row["captions"]) for row in found] == [("sample_1-0", ["a car"]), ("sample_2-0", ["a car"])]
    for k in (0, 1):
        image = codec.decode_image(photos[k]["image"])
        np.testing.assert_array_equal(codec.decode_image(found[k]["image"]), image[0:4, 1 : 5 + k])


def test_small_boxes_are_kept_when_asked(tmp_path):
    raw_regions(tmp_path / "raw")
    assert run(tmp_path / "raw", tmp_path / "out", "--min-side", 1) == 0
    assert [row["captions"] for row in ShardReader.for_split(tmp_path / "out", "train")] == [["a car"], ["dot"], ["a car"]]


def test_context_widens_within_the_photo():
    image = np.arange(10 * 20 * 3).reshape(10, 20, 3)
    np.testing.assert_array_equal(regions.cut(image, [4, 2, 8, 6], 0.0), image[2:6, 4:8])
    np.testing.assert_array_equal(regions.cut(image, [4, 2, 8, 6], 0.5), image[0:8, 2:10])
    np.testing.assert_array_equal(regions.cut(image, [1, 1, 19, 9], 1.0), image)


def test_shards_without_boxes(tmp_path, capsys):
    write_shards(tmp_path / "raw", "parquet", columns=("image", "label_map", "id"))
    assert run(tmp_path / "raw", tmp_path / "out") == 1
    assert "no column boxes, only image, label_map, id" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"min_side": 0, "context": 0.0}, {"min_side": 1, "context": -0.1}])
def test_options_out_of_range(tmp_path, options):
    with pytest.raises(SourceError, match="at least 1 pixel"):
        regions.RegionSource(tmp_path, "train", **options)


def test_a_box_outside_costs_only_itself(tmp_path, capsys):
    rows = [make_row(k) | {"boxes": [{"box": box, "text": "a car", "class_id": 2}]} for k, box in ((1, [50, 1, 60, 4]), (2, [1, 1, 5, 4]))]
    with ShardWriter(tmp_path / "raw", "train", VOCABULARY, list(rows[0]), "parquet") as writer:
        for row in rows:
            writer.write(row)
    assert run(tmp_path / "raw", tmp_path / "strict", "--min-side", 1) == 1
    assert "row 0" in (message := capsys.readouterr().err) and "outside the photo of 9x5 pixels" in message
    assert run(tmp_path / "raw", tmp_path / "out", "--min-side", 1, "--on-bad-sample", "skip") == 0
    assert [row["id"] for row in ShardReader.for_split(tmp_path / "out", "train")] == ["sample_2-0"]
