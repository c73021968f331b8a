"""Scores averaged over views: against whole maps that are resized, flipped, placed and averaged in the plain way."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.evaluation import mask_views
from ofaseg.evaluation.mask_proposals import Proposals, class_map, semantic_maps, upsample_masks
from ofaseg.evaluation.mask_views import SizedPhoto, View, averaged_class_map, averaged_scores, score_rows

Q, K = 7, 4


def a_view(seed, size, corner=(0, 0), mirrored=False):
    generator = torch.Generator().manual_seed(seed)
    padded = tuple(-(-side // 32) * 32 for side in size)
    logits = 3 * torch.randn(Q, padded[0] // 4, padded[1] // 4, generator=generator)
    return View(logits, torch.rand(Q, K, generator=generator), padded, size, corner, mirrored)


def whole_scores(view):
    """(K, H, W) of one view in the ordinary way."""
    masks = upsample_masks(view.mask_logits, view.padded_size, view.size)
    scores = semantic_maps(Proposals(masks, view.class_scores, torch.ones(Q, dtype=torch.bool)))
    return scores.flip(-1) if view.mirrored else scores


def resized(scores, size):
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("native", [(50, 70), (33, 101), (120, 64)])
def test_one_view_is_the_plain_class_map(native):
    view = a_view(0, (50, 70))
    found = averaged_class_map([SizedPhoto((50, 70), [view])], native)
    proposals = Proposals(upsample_masks(view.mask_logits, (64, 96), (50, 70)), view.class_scores, torch.ones(Q, dtype=torch.bool))
    assert (found == class_map(proposals, native)).float().mean() > 0.999
    torch.testing.assert_close(averaged_scores([SizedPhoto((50, 70), [view])], native), resized(whole_scores(view), native))


@pytest.mark.parametrize("elements", [1, 3000, 2**22])
def test_scales_and_mirror_images(monkeypatch, elements):
    """Sizes count alike, whatever the number of their views; bands of any height give the same map."""
    monkeypatch.setattr(mask_views, "CHUNK_ELEMENTS", elements)
    one = [a_view(1, (50, 70)), a_view(2, (50, 70), mirrored=True)]
    two = [a_view(3, (75, 105))]
    photos, native = [SizedPhoto((50, 70), one), SizedPhoto((75, 105), two)], (90, 60)
    expected = resized((whole_scores(one[0]) + whole_scores(one[1])) / 2, native) + resized(whole_scores(two[0]), native)
    expected = expected / 2
    torch.testing.assert_close(averaged_scores(photos, native), expected)
    torch.testing.assert_close(score_rows(photos, native, 17, 40), expected[:, 17:40])
    assert (averaged_class_map(photos, native) == expected.argmax(0)).float().mean() > 0.999


def test_windows_are_averaged_where_they_overlap():
    size = (60, 80)
    views = [a_view(4, (40, 50)), a_view(5, (40, 50), (0, 30)), a_view(6, (40, 50), (20, 0), True), a_view(7, (40, 50), (20, 30))]
    total, count = torch.zeros(K, *size), torch.zeros(size)
    for view in views:
        (top, left), (height, width) = view.corner, view.size
        total[:, top : top + height, left : left + width] += whole_scores(view)
        count[top : top + height, left : left + width] += 1
    assert count.min() == 1 and count.max() == 4
    photo = SizedPhoto(size, views)
    torch.testing.assert_close(averaged_scores([photo], size), total / count)
    torch.testing.assert_close(averaged_scores([photo], (31, 47)), resized(total / count, (31, 47)))
