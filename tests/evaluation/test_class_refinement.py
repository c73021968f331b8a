"""Class probabilities refined along colours, alone and as a part of post-processing."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.evaluation.class_refinement import refine_classes
from ofaseg.evaluation.dense_crf import dense_crf
from ofaseg.evaluation.pamr import pamr
from ofaseg.evaluation.postprocess import PostProcess, segmentations
from ofaseg.evaluation.zero_shot_settings import ZeroShotSettings
from ofaseg.structures import DenseOutput

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scene():
    """A photo of two colours, divided at column 21, and class probabilities on a coarse grid divided at column 24."""
    image = torch.zeros(32, 48, 3, dtype=torch.uint8)
    image[:, :21], image[:, 21:] = torch.tensor([220, 30, 30], dtype=torch.uint8), torch.tensor([30, 30, 220], dtype=torch.uint8)
    logits = torch.full((6, 4, 6), -2.0)
    logits[4, :, :3], logits[2, :, 3:], logits[5] = 1.0, 1.0, -1.0
    return image, logits


@pytest.mark.parametrize("name", ["dense_crf", "pamr"])
def test_only_classes_that_win_somewhere_are_refined(scene, name):
    image, logits = scene
    probs = logits.softmax(0)
    ids, refined = refine_classes(name, image, probs)
    assert ids.tolist() == [2, 4] and refined.shape == (2, 32, 48)
    fine = F.interpolate(probs[[2, 4]][None], (32, 48), mode="bilinear")[0]
    fine = fine / fine.sum(0)
    expected = dense_crf(image, fine) if name == "dense_crf" else pamr(image.permute(2, 0, 1)[None], fine[None])[0]
    torch.testing.assert_close(refined, expected)


def test_unknown_names_are_listed(scene):
    with pytest.raises(ValueError, match="unknown refinement of classes 'threshold'; there are none, dense_crf, pamr"):
        refine_classes("threshold", scene[0], scene[1].softmax(0))


def test_the_edge_moves_to_the_edge_of_the_photo(scene):
    image, logits = scene
    plain, refined = (
        segmentations(DenseOutput(logits[None]), [(64, 96)], PostProcess(refine=name, return_scores=True), images=image[None])[0]
        for name in ("none", "dense_crf")
    )
    assert plain.label_map[:, 47].eq(4).all() and plain.label_map[:, 48].eq(2).all()
    assert refined.label_map[:, :42].eq(4).all() and refined.label_map[:, 42:].eq(2).all()
    assert refined.class_scores.shape == (6, 64, 96) and not refined.class_scores[[0, 1, 3, 5]].any()
    torch.testing.assert_close(refined.class_scores.sum(0), torch.ones(64, 96))


def test_refinement_without_photos_says_so(scene):
    with pytest.raises(ValueError, match="refine 'pamr' reads the photos"):
        segmentations(DenseOutput(scene[1][None]), [(8, 8)], PostProcess(refine="pamr"))


def test_none_with_candidates_is_the_threshold_alone(scene):
    image, logits = scene
    output = DenseOutput(logits[None], None, torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.5, 0.0]]))
    settings = ZeroShotSettings(10, 5, 1.0, 0)
    maps = [
        segmentations(output, [(32, 48)], PostProcess(candidates=settings, refine=name), images=image[None])[0].label_map
        for name in ("none", "threshold")
    ]
    assert torch.equal(*maps) and maps[0].unique().tolist() == [2, 4]


def test_candidates_of_mirrored_photos_are_averaged_before_they_are_chosen(scene):
    """Maps are mirrored back, scores are not mirrored; both are means."""
    image, _ = scene
    maps, other = torch.randn(1, 6, 4, 6), torch.randn(1, 6, 4, 6)
    scores, flipped_scores = torch.tensor([[0.0, 0.9, 0.1, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.1, 0.95, 0.0, 0.0, 0.0]])
    post = PostProcess(candidates=ZeroShotSettings(10, 5, 1.0, 0), refine="threshold")
    both = segmentations(
        DenseOutput(maps, None, scores),
        [(32, 48)],
        PostProcess(candidates=post.candidates, refine="threshold", flip_average=True),
        DenseOutput(other.flip(-1), None, flipped_scores),
        image[None],
    )[0]
    mean = segmentations(DenseOutput((maps + other) / 2, None, (scores + flipped_scores) / 2), [(32, 48)], post, images=image[None])[0]
    assert torch.equal(both.label_map, mean.label_map) and both.label_map.any()
