"""Heat maps: where the colours lie, what the picture says, and the archive."""

import numpy as np
import pytest

from ofaseg.evaluation.heatmaps import COLOURS, SimilarityMaps, heat_overlay, heat_picture, save_maps, stretched


def test_the_largest_cosine_is_red_and_the_smallest_blue_where_they_are():
    image = np.full((60, 90, 3), 128, np.uint8)
    cosines = np.array([[0.1, 0.1, 0.1], [0.1, 0.1, 0.3]], np.float32)
    drawn = heat_overlay(image, cosines, alpha=1.0).astype(int)
    assert (drawn[55, 85] == COLOURS[255]).all() and (drawn[5, 5] == COLOURS[0]).all()
    assert drawn[55, 85, 0] > drawn[55, 85, 2] and drawn[5, 5, 2] > drawn[5, 5, 0]


def test_without_colours_the_photo_is_grey():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    drawn = heat_overlay(image, np.eye(2, dtype=np.float32), alpha=0.0)
    assert (drawn[..., 0] == drawn[..., 2]).all()
    np.testing.assert_allclose(drawn[..., 0], image @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize("values, expected", [([-0.2, 0.0, 0.3], [0, 0.4, 1]), ([0.5, 0.5, 0.5], [0, 0, 0])])
def test_stretching(values, expected):
    np.testing.assert_allclose(stretched(np.array([values], np.float32)), [expected], atol=1e-6)


@pytest.mark.parametrize("size", [(30, 500), (500, 30), (7, 5)])
def test_a_picture_of_any_shape_has_its_scale_below(size):
    image = np.zeros((*size, 3), np.uint8)
    maps = SimilarityMaps(("a very long phrase " * 20,), np.arange(6, dtype=np.float32).reshape(1, 2, 3) / 10, np.array([0.2], np.float32))
    picture = np.asarray(heat_picture(image, maps, 0))
    photo_rows = size[0] * -(-320 // min(size))
    below = picture[photo_rows:]
    assert len(below) > 40 and (below == 255).all(-1).any() and not (below == 255).all()
    columns = np.flatnonzero((below.astype(int).max(-1) - below.min(-1) > 30).any(0))  # the coloured bar
    assert columns[0] > 0 and columns[-1] < picture.shape[1] - 1 and len(columns) > picture.shape[1] // 4


def test_the_archive_needs_no_pickle(tmp_path):
    maps = SimilarityMaps(("a", "größer"), np.ones((2, 3, 4), np.float32), np.array([0.5, -0.5], np.float32))
    save_maps(tmp_path / "x.npz", maps)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as stored:
        assert stored["phrases"].tolist() == ["a", "größer"]
        assert stored["cosines"].shape == (2, 3, 4) and stored["scores"].tolist() == [0.5, -0.5]
