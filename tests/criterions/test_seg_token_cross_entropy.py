import pytest
import torch
import torch.nn.functional as F

from criterions.seg_token_cross_entropy import SegTokenCrossEntropy
from ofaseg.structures import DenseOutput
from ofaseg.vocabulary import IGNORE_INDEX


class Linear(torch.nn.Module):
    """One score per class and patch, from patch numbers."""

    def __init__(self):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.randn(4, 3))

    def forward(self, patches):
        return DenseOutput(self.scores[patches].permute(0, 3, 1, 2))


def batch(patches, target):
    return {"net_input": {"patches": patches}, "target": target, "nsentences": len(target), "ntokens": len(target)}


def samples(count=4):
    target = torch.randint(0, 3, (count, 8, 6))
    target[0, :, :3] = IGNORE_INDEX
    return torch.randint(0, 4, (count, 4, 3)), target


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_labelled_pixels(smoothing):
    patches, target = samples()
    model, criterion = Linear(), SegTokenCrossEntropy(None, smoothing)
    loss, sample_size, log = criterion(model, batch(patches, target))
    full = F.interpolate(model(patches).class_logits, size=(8, 6), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, target, ignore_index=IGNORE_INDEX, label_smoothing=smoothing)
    assert torch.is_tensor(sample_size) and sample_size == pytest.approx(3.5)
    torch.testing.assert_close(loss / sample_size, expected)
    assert not log["loss"].requires_grad


def test_any_split_of_a_batch_gives_the_same_gradient():
    """Two ranks with unlike numbers of labelled pixels together equal one."""
    patches, target = samples()
    model, criterion = Linear(), SegTokenCrossEntropy(None, 0.0)

    def gradient(parts):
        model.zero_grad()
        total = 0
        for part in parts:
            loss, sample_size, _ = criterion(model, batch(patches[part], target[part]))
            loss.backward()
            total = total + sample_size
        return model.scores.grad / total

    torch.testing.assert_close(gradient([slice(0, 4)]), gradient([slice(0, 1), slice(1, 4)]))


def test_validation_at_native_sizes_counts_photos_with_labels():
    model, criterion = Linear(), SegTokenCrossEntropy(None, 0.0)
    patches = torch.randint(0, 4, (3, 4, 3))
    maps = [torch.randint(0, 3, (5, 7)), torch.full((6, 6), IGNORE_INDEX), torch.randint(0, 3, (9, 4))]
    output = model(patches)
    sample = {"native_label_maps": maps, "nsentences": 3, "ntokens": 3}
    loss, sample_size, _ = criterion.loss(output, sample)
    expected = 0.0
    for logits, label_map in ((output.class_logits[0], maps[0]), (output.class_logits[2], maps[2])):
        full = F.interpolate(logits[None], size=label_map.shape, mode="bilinear", align_corners=False)
        expected = expected + F.cross_entropy(full, label_map[None])
    torch.testing.assert_close(loss, expected)
    assert sample_size == 2


def test_a_step_never_waits_for_the_device(monkeypatch):
    """Loss and sample size stay where the scores are until the logs are reduced."""

    def refuse(tensor):
        raise AssertionError("a number was read from the device")

    model, criterion, sample = Linear(), SegTokenCrossEntropy(None, 0.1), batch(*samples())
    for name in ("__int__", "__float__", "__bool__", "__index__", "item", "tolist", "cpu", "numpy", "nonzero", "unique", "masked_select"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    loss, _, log = criterion(model, sample)
    loss.backward()
    monkeypatch.undo()
    assert log["loss"] > 0
