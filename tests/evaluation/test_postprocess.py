"""Post-processing against plain full-size formulas and the official areas of one real image."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.evaluation import postprocess
from ofaseg.evaluation.postprocess import PostProcess, argmax_at_size, feature_propagation, flip_average, resize_scores, segmentations
from ofaseg.structures import DenseOutput


def smooth_logits(num_classes, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, num_classes, 3, 4, generator=generator)
    noise = torch.randn(num_classes, height, width, generator=generator)
    return 3 * F.interpolate(coarse, size=(height, width), mode="bicubic")[0] + 0.3 * noise


def assert_same_best_class(found, scores):
    """Equal to argmax but where the two best scores differ by rounding only."""
    assert found.dtype == torch.long and found.shape == scores.shape[1:]
    best = scores.max(0).values
    assert bool((best - scores.gather(0, found[None])[0] <= 1e-5).all())
    assert (found != scores.argmax(0)).float().mean() < 1e-3


SIZES = [((7, 9), (101, 143)), ((8, 8), (5, 3)), ((1, 5), (20, 20)), ((6, 1), (13, 9)), ((4, 4), (4, 4)), ((1, 1), (3, 2))]


@pytest.mark.parametrize("shape, size", SIZES)
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_argmax_at_size_equals_resize_then_argmax(shape, size, pruned, seed, monkeypatch):
    monkeypatch.setattr(postprocess, "PRUNE_ELEMENTS", 0 if pruned else 10**12)
    monkeypatch.setattr(postprocess, "CHUNK_ELEMENTS", 5000)
    logits = smooth_logits(11, *shape, seed=seed)
    assert_same_best_class(argmax_at_size(logits, size), resize_scores(logits, size))


def test_argmax_at_size_with_many_classes():
    logits = smooth_logits(171, 8, 11)
    assert_same_best_class(argmax_at_size(logits, (256, 352)), resize_scores(logits, (256, 352)))


def test_propagation_equals_the_dense_matrix_power():
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(2, 5, 4, 6, generator=generator).softmax(1)
    features = torch.randn(2, 16, 4, 6, generator=generator)
    found = feature_propagation(probs, features, topk=3, iterations=25)
    for b in range(2):
        rows = F.normalize(features[b].flatten(1).T.double(), dim=1)
        nearest = (rows @ rows.T).topk(3).indices
        assert all(i in nearest[i] for i in range(24))
        matrix = torch.zeros(24, 24, dtype=torch.double).scatter_(1, nearest, 1 / 3)
        expected = torch.linalg.matrix_power(matrix, 25) @ probs[b].flatten(1).T.double()
        torch.testing.assert_close(found[b].flatten(1).T.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 4, 6))


def test_propagation_leaves_its_input_alone_and_zero_rounds_change_nothing():
    probs, features = torch.rand(1, 3, 2, 2), torch.rand(1, 4, 2, 2)
    before = probs.clone()
    torch.testing.assert_close(feature_propagation(probs, features, 3, 0), probs)
    feature_propagation(probs, features, 9, 2)  # more neighbours than patches: all of them
    assert torch.equal(before, probs)
    with pytest.raises(ValueError, match="grid"):
        feature_propagation(probs, torch.rand(1, 4, 3, 2), 3, 1)


def test_flip_average_mirrors_back():
    scores = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(flip_average(scores, scores.flip(-1)), scores)


def test_segmentations_of_a_batch_equal_those_one_by_one():
    logits = torch.stack([smooth_logits(4, 6, 5, seed) for seed in range(3)])
    features, sizes = torch.rand(3, 8, 6, 5), [(30, 20), (31, 47), (6, 5)]
    for post in (PostProcess(), PostProcess(resnet_iters=4, return_scores=True)):
        together = segmentations(DenseOutput(logits, features), sizes, post)
        for i, result in enumerate(together):
            alone = segmentations(DenseOutput(logits[i : i + 1], features[i : i + 1]), sizes[i : i + 1], post)[0]
            assert tuple(result.label_map.shape) == sizes[i]
            assert torch.equal(result.label_map, alone.label_map)
            if post.return_scores:
                assert result.class_scores.shape == (4, *sizes[i])
                torch.testing.assert_close(result.class_scores.sum(0), torch.ones(sizes[i]))
                assert_same_best_class(result.label_map, result.class_scores)


def test_segmentations_say_what_is_missing():
    logits = torch.rand(1, 2, 3, 3)
    with pytest.raises(ValueError, match="needs image features"):
        segmentations(DenseOutput(logits), [(3, 3)], PostProcess(resnet_iters=1))
    with pytest.raises(ValueError, match="go together"):
        segmentations(DenseOutput(logits), [(3, 3)], PostProcess(flip_average=True))
    with pytest.raises(ValueError, match="2 native sizes"):
        segmentations(DenseOutput(logits), [(3, 3)] * 2)
    with pytest.raises(ValueError, match="temperature above 0"):
        PostProcess(resnet_prob_temperature=0)
    with pytest.raises(ValueError, match="threshold 2: it cuts maps in 0..1"):
        PostProcess(threshold=2)


def test_flip_average_of_segmentations():
    logits = smooth_logits(3, 5, 4)[None]
    mirrored = DenseOutput(logits.flip(-1))
    plain = segmentations(DenseOutput(logits), [(15, 12)], PostProcess(return_scores=True))[0]
    averaged = segmentations(DenseOutput(logits), [(15, 12)], PostProcess(flip_average=True, return_scores=True), mirrored)[0]
    expected = resize_scores(logits[0].softmax(0), (15, 12))
    torch.testing.assert_close(averaged.class_scores, expected)
    assert (averaged.label_map == plain.label_map).float().mean() > 0.9
