"""Region crops: all at once against cropping and resizing one after the other; boxes at the border, of one pixel, of nothing."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.models.clip_towers import build_towers, image_vectors
from ofaseg.models.freeseg import architecture_config
from ofaseg.models.layers import region_crops as module
from ofaseg.models.layers.region_crops import boxes_of, crops_in_turn, crops_together, cubic_matrix, region_crops

HEIGHT, WIDTH = 37, 53


def regions() -> torch.Tensor:
    """Masks (6, H, W): anywhere, one column, whole photo, one pixel in the last corner, nothing, a random one."""
    masks = torch.zeros(6, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 4:20, 9:40] = torch.rand(16, 31) > 0.4
    masks[1, 3:30, WIDTH - 1] = True
    masks[2] = True
    masks[3, -1, -1] = True
    masks[5] = torch.rand(HEIGHT, WIDTH) > 0.98
    return masks


def one_after_the_other(photo, masks, size):
    crops = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        region = (photo * mask)[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        crops.append(F.interpolate(region[None], (size, size), mode="bicubic", align_corners=True)[0])
    return torch.stack(crops)


def test_boxes():
    masks = regions()
    boxes, valid = boxes_of(masks)
    assert valid.tolist() == [True, True, True, True, False, True]
    assert boxes[1].tolist() == [WIDTH - 1, 3, WIDTH, 30] and boxes[2].tolist() == [0, 0, WIDTH, HEIGHT]
    assert boxes[3].tolist() == [WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT] and boxes[4].tolist() == [0, 0, 1, 1]
    columns, rows = masks[5].any(0).nonzero().flatten(), masks[5].any(1).nonzero().flatten()
    assert boxes[5].tolist() == [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize("size", [9, 32, 70])  # on a CPU, most of the smallest are interpolated, none of the largest
@pytest.mark.parametrize("chunk", [1, 2**24])
@pytest.mark.parametrize("form", [crops_in_turn, crops_together, region_crops])
def test_against_one_after_the_other(monkeypatch, form, size, chunk):
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", chunk)
    photo, masks = 3 * torch.randn(3, HEIGHT, WIDTH), regions()
    boxes, valid = boxes_of(masks)
    crops = form(photo, masks[valid], boxes[valid], size)
    torch.testing.assert_close(crops, one_after_the_other(photo, masks[valid], size), atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [9, 70])
def test_under_autocast_colours_stay_exact(size):
    photo, masks = 3 * torch.randn(3, HEIGHT, WIDTH), regions()
    boxes, valid = boxes_of(masks)
    expected = region_crops(photo, masks[valid], boxes[valid], size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(region_crops(photo, masks[valid], boxes[valid], size), expected)


@pytest.mark.parametrize("batch, elements, expected", [(32, 2**40, [4]), (3, 2**40, [3, 1]), (32, 2 * 17 * 256, [2, 2]), (32, 1, [1] * 4)])
@torch.no_grad()
def test_vectors_are_the_same_however_many_at_a_time(monkeypatch, batch, elements, expected):
    """CLIP nano at 32 pixels: 17 tokens, 256 wide inside; on a CPU no more elements than that at a time."""
    torch.manual_seed(3)
    clip = build_towers(architecture_config("freeseg_nano"))
    photo, masks, read = 3 * torch.randn(3, HEIGHT, WIDTH), torch.rand(5, HEIGHT, WIDTH) > 0.5, []
    masks[2] = False
    boxes, valid = boxes_of(masks)
    alone = image_vectors(clip, region_crops(photo, masks[valid], boxes[valid], 32))
    monkeypatch.setattr(module, "READ_BYTES", 4 * elements)
    monkeypatch.setattr(module, "image_vectors", lambda clip, crops: read.append(len(crops)) or image_vectors(clip, crops))
    vectors, found = module.region_vectors(clip, photo, masks, 32, batch)
    assert found.tolist() == valid.tolist() == [True, True, False, True, True] and read == expected
    torch.testing.assert_close(vectors[valid], alone)
    assert not vectors[2].any()


def test_nothing_to_cut():
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    boxes, valid = boxes_of(masks)
    assert not valid.any()
    for form in (crops_in_turn, crops_together):
        assert form(torch.randn(3, HEIGHT, WIDTH), masks[valid], boxes[valid], 8).shape == (0, 3, 8, 8)


def test_outside_its_box_a_matrix_reads_nothing():
    matrix = cubic_matrix(torch.tensor([3, 0]), torch.tensor([7, 1]), 10, 6)
    assert not matrix[0, :, :3].any() and not matrix[0, :, 7:].any() and not matrix[1, :, 1:].any()
    torch.testing.assert_close(matrix.sum(2), torch.ones(2, 6))
