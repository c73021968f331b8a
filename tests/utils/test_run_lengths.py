"""Run lengths against pycocotools and against examples worked out by hand."""

import numpy as np
import pytest

from ofaseg.utils.run_lengths import RunLengthError, mask_of_runs, mask_of_text, runs_of_mask, runs_of_text, text_of_mask, text_of_runs


def masks():
    g = np.random.default_rng(0)
    yield np.zeros((3, 4), dtype=bool)
    yield np.ones((3, 4), dtype=bool)
    yield np.ones((1, 1), dtype=bool)
    yield g.random((7, 5)) < 0.5
    yield g.random((5, 31)) < 0.05
    large = np.zeros((2000, 3000), dtype=bool)  # runs of millions of pixels, with differences of either sign
    large[5:1500, 100] = large[:, 2000:2400] = large[9, 9] = True
    yield large


def test_there_and_back():
    for mask in masks():
        np.testing.assert_array_equal(mask_of_runs(runs_of_mask(mask), *mask.shape), mask)
        np.testing.assert_array_equal(mask_of_text(text_of_mask(mask), *mask.shape), mask)


def test_the_text_is_that_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    for mask in masks():
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert text_of_mask(mask) == expected
        np.testing.assert_array_equal(mask_of_text(expected, *mask.shape), mask)


def test_by_hand():
    mask = np.array([[0, 1, 1], [0, 0, 1]], dtype=bool)  # columns 00 10 11
    assert runs_of_mask(mask).tolist() == [2, 1, 1, 2] and runs_of_mask(~mask).tolist() == [0, 2, 1, 1, 2]
    assert text_of_runs([2, 1, 1, 2]) == "2111"  # the fourth as the difference 2 - 1
    assert text_of_runs([5, 40, 5, 8]) == "5X15PO"  # 40 = 8 + 32 * 1; 8 - 40 = -32
    assert runs_of_text("5X15PO").tolist() == [5, 40, 5, 8]


@pytest.mark.parametrize(
    "text, message", [("2 11", "' ' in the text"), ("21\x80", "in the text"), ("2P", "ends in the middle"), ("XXXXXXXX1", "long")]
)
def test_damaged_text(text, message):
    with pytest.raises(RunLengthError, match=message):
        runs_of_text(text)


@pytest.mark.parametrize("runs", [[3, 2], [4, -1, 3], [[6]]])
def test_runs_of_another_size(runs):
    with pytest.raises(RunLengthError, match="not to 2 x 3"):
        mask_of_runs(runs, 2, 3)
