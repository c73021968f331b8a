"""The losses against torch and numpy: value and gradient."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ofaseg import losses
from ofaseg.losses import contrastive_loss, masked_bce, upsampled_cross_entropy
from ofaseg.vocabulary import IGNORE_INDEX


def reference(logits, target, smoothing):
    scores = F.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(scores, target, ignore_index=IGNORE_INDEX, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("grid, size", [((4, 4), (64, 64)), ((3, 5), (37, 101)), ((5, 7), (5, 7)), ((8, 6), (5, 3)), ((1, 1), (9, 4))])
@pytest.mark.parametrize("chunk", [700, 2**16, 2**20])  # rows of a sample, several of the small samples, all five
def test_equals_torch(monkeypatch, grid, size, smoothing, chunk):
    monkeypatch.setitem(losses.CHUNK_ELEMENTS, "cpu", chunk)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    logits = (3 * torch.randn(5, 6, *grid)).requires_grad_()
    target = torch.randint(-1, 6, (5, *size))
    ours = upsampled_cross_entropy(logits, target, smoothing)
    (gradient,) = torch.autograd.grad(2 * ours, logits)
    expected = reference(logits, target, smoothing)
    (expected_gradient,) = torch.autograd.grad(2 * expected, logits)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_no_labelled_pixel_is_zero():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((1, 8, 8), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0.0 and not logits.grad.any()


def test_extreme_scores_stay_finite():
    logits = torch.tensor([-1e4, 0.0, 1e4]).view(1, 3, 1, 1).requires_grad_()
    loss = upsampled_cross_entropy(logits, torch.zeros(1, 2, 2, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and logits.grad.isfinite().all()


def test_half_precision_logits_are_computed_in_float32():
    logits, target = torch.randn(1, 4, 3, 3), torch.randint(0, 4, (1, 24, 24))
    rounded = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = upsampled_cross_entropy(rounded, target)
    loss.backward()
    assert loss.dtype == torch.float32 and rounded.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, reference(rounded.detach().float(), target, 0.0))


def test_without_gradient():
    logits, target = torch.randn(1, 4, 3, 3), torch.randint(0, 4, (1, 24, 24))
    with torch.no_grad():
        torch.testing.assert_close(upsampled_cross_entropy(logits, target), reference(logits, target, 0.0))


@pytest.mark.parametrize(
    "logits, target, smoothing", [((1, 3, 2), (1, 4, 4), 0.0), ((2, 3, 2, 2), (1, 4, 4), 0.0), ((1, 3, 2, 2), (1, 4, 4), 1.5)]
)
def test_bad_arguments(logits, target, smoothing):
    with pytest.raises(ValueError, match="need logits|label_smoothing"):
        upsampled_cross_entropy(torch.zeros(logits), torch.zeros(target, dtype=torch.long), smoothing)


def test_narrow_class_ids_give_the_same_loss():
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(IGNORE_INDEX, 3, (2, 8, 10))
    expected = upsampled_cross_entropy(logits, target, 0.1)
    assert torch.equal(upsampled_cross_entropy(logits, target.to(torch.int16), 0.1), expected)


# -- contrastive loss --------------------------------------------------------------------------------------------------


def numpy_contrastive(image, text, all_images, all_texts, temperature, first, smoothing):
    """Pair by pair in float64: minus the log share of the partner, both ways; and the hits."""
    total, hits = 0.0, [0, 0]
    for direction, (queries, gallery) in enumerate(((image, all_texts), (text, all_images))):
        for i, query in enumerate(queries.astype(np.float64)):
            scores = gallery.astype(np.float64) @ query / temperature
            log_shares = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
            wanted = np.full(len(scores), smoothing / len(scores))
            wanted[first + i] += 1 - smoothing
            total -= 0.5 * (wanted * log_shares).sum()
            hits[direction] += int(scores.argmax() == first + i)
    return total, hits


def unit_rows(rows, dim=12):
    return F.normalize(torch.randn(rows, dim), dim=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows, first, pairs", [(6, 0, 6), (9, 3, 4), (9, 5, 4), (1, 0, 1)])
def test_contrastive_loss_equals_numpy(smoothing, rows, first, pairs):
    all_images = unit_rows(rows)
    all_texts = F.normalize(all_images + 0.5 * unit_rows(rows), dim=1)
    image, text = all_images[first : first + pairs], all_texts[first : first + pairs]
    loss, hits = contrastive_loss(image, text, all_images, all_texts, torch.tensor(0.07), first, smoothing)
    parts = (part.numpy() for part in (image, text, all_images, all_texts))
    expected, expected_hits = numpy_contrastive(*parts, float(torch.tensor(0.07)), first, smoothing)
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert hits.tolist() == expected_hits


def test_contrastive_gradients_are_the_residual():
    """d/dI = (P + P'^T - 2 Y) T / (2 tau), with P over texts of an image and P' over images of a text; tau by differences."""
    image, text = (unit_rows(5).double().requires_grad_() for _ in range(2))
    temperature = torch.tensor(0.2, requires_grad=True)
    loss = contrastive_loss(image, text, image, text, temperature)[0]
    image_grad, text_grad, temperature_grad = torch.autograd.grad(loss, (image, text, temperature))
    scores = (image @ text.T / 0.2).detach()
    residual = scores.softmax(1) + scores.softmax(0) - 2 * torch.eye(5)
    torch.testing.assert_close(image_grad, (residual @ text / 0.4).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text_grad, (residual.T @ image / 0.4).detach(), atol=1e-5, rtol=1e-4)
    low, high = (numpy_contrastive(*[t.detach().numpy() for t in (image, text, image, text)], tau, 0, 0.0)[0] for tau in (0.199, 0.201))
    assert float(temperature_grad) == pytest.approx((high - low) / 0.002, rel=1e-3)


def test_parts_of_the_rows_sum_to_the_whole():
    images, texts, temperature = unit_rows(8), unit_rows(8), torch.tensor(0.05)
    whole, hits = contrastive_loss(images, texts, images, texts, temperature)
    parts = [contrastive_loss(images[k : k + 2], texts[k : k + 2], images, texts, temperature, k) for k in (0, 2, 4, 6)]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), rel=1e-5)
    assert torch.equal(sum(part for _, part in parts), hits)


def test_no_pairs_are_no_loss():
    nothing = torch.zeros(0, 4)
    loss, hits = contrastive_loss(nothing, nothing, nothing, nothing, torch.tensor(0.02))
    assert float(loss) == 0.0 and hits.tolist() == [0, 0]


def test_contrastive_loss_is_float32_under_autocast():
    images, texts, temperature = unit_rows(6), unit_rows(6), torch.tensor(0.02)
    expected = contrastive_loss(images, texts, images, texts, temperature)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(images, texts, images, texts, temperature)[0]
    assert found.dtype == torch.float32 and torch.equal(found, expected)


# -- masked binary cross-entropy ---------------------------------------------------------------------------------------


def naive_bce(logits, target):
    """One sample, one pixel at a time."""
    values = []
    for logit, label in zip(logits.flatten().tolist(), target.flatten().tolist()):
        if label != IGNORE_INDEX:
            values.append(math.log1p(math.exp(-logit if label else logit)))
    return sum(values) / len(values) if values else 0.0


def bce_inputs():
    generator = torch.Generator().manual_seed(4)
    target = torch.randint(0, 2, (3, 2, 4, 5), generator=generator)
    target[0, :, 1:3] = IGNORE_INDEX
    target[2] = IGNORE_INDEX
    return 3 * torch.randn(3, 2, 4, 5, generator=generator), target


def test_masked_bce():
    logits, target = bce_inputs()
    losses, counts = masked_bce(logits, target)
    assert counts.tolist() == [True, True, False] and float(losses[2]) == 0.0
    for i in range(3):
        assert float(losses[i]) == pytest.approx(naive_bce(logits[i], target[i]), rel=1e-5)
    alone, _ = masked_bce(logits[:, :1], target[:, 0])
    assert float(alone[0]) == pytest.approx(naive_bce(logits[0, :1], target[0, :1]), rel=1e-5)
    with pytest.raises(ValueError, match="need a target for each logit"):
        masked_bce(logits, target[:, 0])


def test_masked_bce_of_nothing_labelled_as_published():
    logits, target = bce_inputs()
    losses, counts = masked_bce(logits, target, ignored_count=True)
    assert counts.all() and torch.equal(losses[:2], masked_bce(logits, target)[0][:2])
    assert float(losses[2]) == pytest.approx(naive_bce(logits[2], torch.zeros(2, 4, 5)), rel=1e-5)


def test_masked_bce_gives_ignored_pixels_no_gradient():
    logits, target = bce_inputs()
    logits.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = masked_bce(logits, target)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert not logits.grad[target == IGNORE_INDEX].any() and logits.grad[target != IGNORE_INDEX].all()
