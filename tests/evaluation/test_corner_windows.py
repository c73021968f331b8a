"""Windows that stop at the border: places by hand, averages against a loop over pixels, the padding seen by the model."""

import pytest
import torch

from ofaseg.evaluation.corner_windows import corner_windows, published_stride, window_boxes


@pytest.mark.parametrize(
    "height, width, count",
    [(375, 500, 9), (480, 640, 12), (224, 224, 1), (100, 150, 1), (100, 300, 2), (225, 224, 2), (373, 224, 2), (374, 224, 3)],
)
def test_published_counts(height, width, count):
    """Digest, section 9: windows of 224, 149 apart."""
    assert published_stride(224) == 149
    assert len(window_boxes(height, width, 224, 149)) == count


def test_places():
    boxes = window_boxes(375, 230, 224, 149)
    assert boxes == [
        (0, 0, 224, 224),
        (0, 149, 224, 230),
        (149, 0, 373, 224),
        (149, 149, 373, 230),
        (298, 0, 375, 224),
        (298, 149, 375, 230),
    ]
    with pytest.raises(ValueError, match="stride no more than the window"):
        window_boxes(10, 10, 4, 5)


def brightness(part):
    """A model that says two things of each window: the pixel's own value, and how much padding the window has."""
    padded = (part == -1.0).all(1, keepdim=True).float().mean((2, 3), keepdim=True)
    return torch.cat([part.mean(1, keepdim=True), padded.expand(-1, 1, *part.shape[2:])], 1)


@pytest.mark.parametrize("size", [(11, 17), (17, 6), (5, 7), (8, 8), (6, 30)])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_averages(size, batch):
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    found = corner_windows(brightness, image, window=8, batch=batch)
    assert found.shape == (2, *size)
    torch.testing.assert_close(found[0], image.mean(0))
    stride = 5
    for y in (0, size[0] // 2, size[0] - 1):
        for x in (0, size[1] // 2, size[1] - 1):
            shares = []
            for top in range(0, max(1, size[0] - 8 + stride), stride):
                for left in range(0, max(1, size[1] - 8 + stride), stride):
                    if top <= y < top + 8 and left <= x < left + 8:
                        shares.append(1 - min(8, size[0] - top) * min(8, size[1] - left) / 64)
            assert float(found[1, y, x]) == pytest.approx(sum(shares) / len(shares), abs=1e-6)


def test_other_paddings_and_one_photo_at_a_time():
    image = torch.rand(1, 3, 5, 7)
    assert float(corner_windows(brightness, image, 8, padding=0.0)[1].max()) == 0.0
    with pytest.raises(ValueError, match="one photo"):
        corner_windows(brightness, torch.rand(2, 3, 5, 7), 8)
