"""Mosaics of FSS-1000: four classes, each in its quarter, drawn by the seed alone."""

import numpy as np
import pytest

from data_prep import mosaic4, prepare
from data_prep.source import SourceError
from tests.data_prep.raw_layouts import MOSAIC_CLASSES, raw_mosaic4, write_lines, write_values


def opened(root, *more):
    args = prepare.parse_arguments(["mosaic4", *raw_mosaic4(root), "--out", str(root / "out"), *more])
    return mosaic4.open_split(args.root, "train", args)


def test_each_quarter_shows_another_class(tmp_path):
    source = opened(tmp_path)
    assert len(source) == 3 and source.vocabulary.names == ("background", *MOSAIC_CLASSES)
    for i, sample in enumerate(source):
        assert sample["image"].shape == (12, 12, 3) and sample["label_map"].shape == (12, 12)
        quarters = [sample["label_map"][top : top + 6, left : left + 6] for top in (0, 6) for left in (0, 6)]
        expected = [source.photos.pairs[k].stem.split("/")[0] for k in source.parts(i)]
        for quarter, name in zip(quarters, expected):
            class_id = source.vocabulary.names.index(name)
            assert set(np.unique(quarter)) == {0, class_id} and (quarter[:, :2] == class_id).all() and not quarter[:, 4:].any()
        assert sorted(expected) == MOSAIC_CLASSES


def test_the_draw_depends_on_seed_and_number_alone(tmp_path):
    source, more, other = opened(tmp_path), opened(tmp_path, "--num", "50"), opened(tmp_path, "--num", "50", "--seed", "2")
    assert [source.parts(i) for i in range(3)] == [more.parts(i) for i in range(3)]
    assert [more.parts(i) for i in range(50)] != [other.parts(i) for i in range(50)]
    assert len({tuple(more.parts(i)) for i in range(50)}) > 20
    assert len(opened(tmp_path, "--num", "0")) == 8


def test_too_few_classes(tmp_path):
    raw_mosaic4(tmp_path)
    write_lines(tmp_path / "trn.txt", MOSAIC_CLASSES[:3])
    args = prepare.parse_arguments(["mosaic4", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SourceError, match="split train has 3 classes; a mosaic needs 4"):
        mosaic4.open_split(args.root, "train", args)


def test_a_mask_of_another_size_is_named(tmp_path):
    source = opened(tmp_path)
    write_values(source.photos.pairs[source.parts(0)[0]].label_map, np.zeros((2, 2)))
    with pytest.raises(SourceError, match=r"the mask is \(2, 2\), the photo \(7, 5\)"):
        source[0]


@pytest.mark.parametrize("options", [("--side", "0"), ("--num", "-1")])
def test_numbers_out_of_range(tmp_path, options):
    with pytest.raises(SourceError, match="0 or more mosaics, and a side of at least 1 pixel"):
        opened(tmp_path, *options)
