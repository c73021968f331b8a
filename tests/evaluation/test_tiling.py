"""Windows and scales against loops over cells, with models whose output is known."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.evaluation.postprocess import PostProcess
from ofaseg.evaluation.tiling import parse_scales, slide, tiled, window_starts
from ofaseg.structures import DenseOutput

CELL = 4


def colour_model(image):
    """Class maps are the mean colours of the cells: the same in every window. Scores are the photo's mean colour."""
    cells = F.avg_pool2d(image.float(), CELL, ceil_mode=True, count_include_pad=False)
    return DenseOutput(cells, cells * 2, image.float().mean((2, 3)))


def place_model(image):
    """Class maps depend on where in the window a cell is: overlaps are averaged, or this shows."""
    height, width = (-(-side // CELL) for side in image.shape[2:])
    places = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width) + image[0, 0, 0, 0]
    return DenseOutput(places.expand(len(image), 2, height, width))


def photos(height, width):
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize(
    "length, window, stride, expected",
    [(16, 16, 8, [0]), (12, 16, 8, [0]), (20, 16, 8, [0, 4]), (32, 16, 8, [0, 8, 16]), (36, 16, 16, [0, 16, 20])],
)
def test_window_starts(length, window, stride, expected):
    assert window_starts(length, window, stride) == expected


@pytest.mark.parametrize("height, width", [(20, 36), (36, 20), (8, 40)])
def test_windows_of_a_local_model_are_the_whole(height, width):
    image = photos(height, width)
    whole, output = colour_model(image), tiled(colour_model, image, CELL, window=16, stride=8)
    assert torch.allclose(output.class_logits, whole.class_logits) and torch.allclose(output.features, whole.features)
    places = [(top, left) for top in window_starts(height, 16, 8) for left in window_starts(width, 16, 8)]
    windows = [image[:, :, top : top + 16, left : left + 16] for top, left in places]
    expected = torch.stack([window.float().mean((2, 3)) for window in windows]).mean(0)
    assert torch.allclose(output.image_scores, expected)


def test_overlaps_are_averaged_cell_by_cell():
    image = photos(20, 28)
    output = slide(place_model, image, CELL, 16, 8)
    assert output.features is None and output.image_scores is None and output.class_logits.shape == (2, 2, 5, 7)
    for row in range(5):
        for column in range(7):
            values = [
                (row - top // CELL) * 4 + (column - left // CELL) + float(image[0, 0, top, left])
                for top in (0, 4)
                for left in (0, 8, 12)
                if 0 <= row - top // CELL < 4 and 0 <= column - left // CELL < 4
            ]
            assert values and output.class_logits[1, 1, row, column] == pytest.approx(sum(values) / len(values))


def test_one_window_or_one_scale_is_the_model_itself():
    image = photos(20, 28)
    for output in (tiled(place_model, image, CELL), tiled(place_model, image, CELL, window=28), tiled(place_model, image, CELL, 400, 4)):
        assert torch.equal(output.class_logits, place_model(image).class_logits)


def test_sides_that_the_cell_does_not_divide():
    image = photos(18, 27)
    assert tiled(colour_model, image, CELL, window=16).class_logits.shape == (2, 3, 5, 7)
    assert tiled(colour_model, image, CELL, scales=(1.0, 2.0)).class_logits.shape == (2, 3, 5, 7)


def test_scales_are_averaged_on_the_grid_of_the_photo():
    image, seen = photos(16, 24), []

    def model(photo):
        seen.append(tuple(photo.shape[2:]))
        assert photo.dtype == torch.uint8
        return colour_model(photo)

    output = tiled(model, image, CELL, scales=(0.5, 1.0, 1.4))
    assert seen == [(8, 12), (16, 24), (24, 32)]  # 22.4 and 33.6 pixels are 5.6 and 8.4 patches
    parts = []
    for size in seen:
        resized = F.interpolate(image.float(), size=size, mode="bilinear", antialias=True) if size != (16, 24) else image.float()
        parts.append(F.interpolate(F.avg_pool2d(resized.round(), CELL), size=(4, 6), mode="bilinear"))
    assert torch.allclose(output.class_logits, torch.stack(parts).mean(0), atol=1e-3)
    assert output.image_scores.shape == (2, 3)


def test_windows_keep_their_size_at_every_scale():
    seen = []

    def model(photo):
        seen.append(tuple(photo.shape[2:]))
        return colour_model(photo)

    tiled(model, photos(16, 16), CELL, window=16, stride=16, scales=(1.0, 2.0))
    assert seen == [(16, 16)] * 5


def test_wrong_numbers():
    for window, stride in ((18, 4), (16, 6), (16, 20), (-4, 4)):
        with pytest.raises(ValueError, match="multiples of the model's patch of 4 pixels"):
            tiled(colour_model, photos(16, 16), CELL, window, stride)
    assert parse_scales("") == (1.0,) and parse_scales(1) == (1.0,) and parse_scales("0.75, 1,1.5") == (0.75, 1.0, 1.5)
    for text in ("1;2", "0,1", "inf", "nan"):
        with pytest.raises(ValueError, match="scales"):
            parse_scales(text)
    with pytest.raises(ValueError, match="at least one"):
        PostProcess(scales=())
