"""Masks of COCO's JSON files against pycocotools, and the faults of damaged records."""

import json
import sys

import numpy as np
import pytest

from data_prep.mask_drawing import draw_mask
from data_prep.source import SourceError


def random_mask(rng, height, width):
    """A blob-like mask: long runs, as in annotations."""
    coarse = rng.integers(0, 2, (height // 5 + 1, width // 7 + 1))
    return np.kron(coarse, np.ones((5, 7), dtype=int))[:height, :width].astype(bool)


def plain_counts(mask):
    """Run lengths down the columns, unset pixels first, counted pixel by pixel."""
    counts, current = [0], False
    for value in mask.T.reshape(-1).tolist():
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return counts


@pytest.mark.parametrize("height, width", [(1, 1), (4, 9), (37, 23), (300, 211)])
def test_run_lengths(height, width):
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(height)
    masks = [random_mask(rng, height, width) for _ in range(5)] + [np.zeros((height, width), bool), np.ones((height, width), bool)]
    for mask in masks:
        text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        for counts in (text, plain_counts(mask)):
            drawn = draw_mask({"size": [height, width], "counts": counts}, height, width, "here")
            assert drawn.dtype == bool and drawn.shape == (height, width)
            np.testing.assert_array_equal(drawn, mask)


def test_a_run_goes_down_a_column():
    drawn = draw_mask({"size": [2, 3], "counts": [1, 2, 3]}, 2, 3, "here")
    assert drawn.tolist() == [[False, True, False], [True, False, False]]


def test_polygons_are_united():
    pytest.importorskip("pycocotools")
    square, other = [1, 1, 4, 1, 4, 3, 1, 3], [6.0, 0.0, 8.0, 0.0, 8.0, 2.0, 6.0, 2.0]
    expected = np.zeros((5, 9), dtype=bool)
    expected[1:3, 1:4] = expected[0:2, 6:8] = True
    np.testing.assert_array_equal(draw_mask([square, other], 5, 9, "here"), expected)
    assert not draw_mask([], 5, 9, "here").any()


@pytest.mark.parametrize(
    "segmentation, message",
    [
        (None, "no polygons and no run lengths"),
        ({"size": [2, 3]}, "no polygons and no run lengths"),
        ({"size": [3, 2], "counts": [6]}, r"of size \[3, 2\] in a photo of \[2, 3\]"),
        ({"size": [2, 3], "counts": [5]}, "add up to 5 pixels, not to 2 x 3"),
        ({"size": [2, 3], "counts": [-1, 7]}, "no numbers of pixels"),
        ({"size": [2, 3], "counts": [6.0]}, "no numbers of pixels"),
        ({"size": [2, 3], "counts": "6 "}, "' ' in the text"),
        ({"size": [2, 3], "counts": "o"}, "ends in the middle of a number"),
        ({"size": [2, 3], "counts": "O7"}, "holds -1"),
        ({"size": [2, 3], "counts": "o" * 100}, "in the text of run lengths"),
        ([[1, 1, 2, 2]], "a polygon is not a list"),
        ([[1, 1, 2, 2, 3]], "a polygon is not a list"),
        ([1, 1, 2, 2, 3, 3], "a polygon is not a list"),
        ([[1, 1, 2, 2, 3, "3"]], "a polygon is not a list"),
        (json.loads("[[1, 1, 2, 2, 3, NaN]]"), "a polygon is not a list"),
        ([[1, 1, 2, 2, 3, 1e300]], "a polygon is not a list"),
    ],
)
def test_damaged_records_are_named(segmentation, message):
    with pytest.raises(SourceError, match=f"^here: .*{message}"):
        draw_mask(segmentation, 2, 3, "here")


def test_without_pycocotools_polygons_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(SourceError, match="here: polygons .* pip install pycocotools"):
        draw_mask([[1, 1, 2, 2, 3, 1]], 2, 3, "here")
    assert draw_mask({"size": [2, 3], "counts": "06"}, 2, 3, "here").all()  # run lengths need nothing
