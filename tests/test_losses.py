"""The chunked loss against torch's own: value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg import losses
from ofaseg.losses import upsampled_cross_entropy
from ofaseg.vocabulary import IGNORE_INDEX


def reference(logits, target, smoothing):
    scores = F.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(scores, target, ignore_index=IGNORE_INDEX, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("grid, size", [((4, 4), (64, 64)), ((3, 5), (37, 101)), ((5, 7), (5, 7)), ((8, 6), (5, 3)), ((1, 1), (9, 4))])
def test_equals_torch(monkeypatch, grid, size, smoothing):
    monkeypatch.setitem(losses.CHUNK_ELEMENTS, "cpu", 700)
    logits = (3 * torch.randn(2, 6, *grid)).requires_grad_()
    target = torch.randint(-1, 6, (2, *size))
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
