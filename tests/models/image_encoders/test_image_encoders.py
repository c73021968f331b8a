"""Every registered image encoder: declared shapes, frozen statistics, parameter names."""

import pytest
import torch
from torch import nn

from ofaseg.models.image_encoders import FrozenBatchNorm2d, build_image_encoder


@pytest.mark.parametrize("name, stride", [("resnet50", 8), ("conv_stem", 8), ("conv_stem", 4)])
def test_shapes(name, stride):
    encoder = build_image_encoder(name, stride=stride).eval()
    with torch.no_grad():
        output = encoder(torch.randn(2, 3, 50, 83))
    for key, features in output.items():
        step = encoder.out_strides[key]
        assert features.shape == (2, encoder.out_channels[key], -(-50 // step), -(-83 // step))
    assert encoder.out_feature in output


def test_resnet_has_the_usual_names():
    names = set(build_image_encoder("resnet50", frozen_batch_norm=True).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer3.5.bn3.bias"} <= names
    assert not any("num_batches_tracked" in name or "layer4" in name for name in names)


def test_frozen_batch_norm_equals_inference():
    frozen, plain = FrozenBatchNorm2d(4), nn.BatchNorm2d(4).eval()
    state = {key: torch.rand_like(value) + 0.5 for key, value in frozen.state_dict().items()}
    frozen.load_state_dict(state)
    plain.load_state_dict(state, strict=False)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(frozen(x), plain(x))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["resnet50", "conv_stem"])
@pytest.mark.parametrize("frozen", [False, True])
def test_folded_evaluation_equals_the_layers(name, frozen, fused, monkeypatch):
    encoder = build_image_encoder(name, frozen_batch_norm=frozen).eval()
    for key, value in encoder.state_dict().items():
        if "bn" in key and value.is_floating_point():
            value.add_(0.3 * torch.rand_like(value))
    images = torch.randn(1, 3, 64, 80)
    expected = encoder(images)[encoder.out_feature].detach()  # with gradients on, layer by layer
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=fused):
        folded = encoder(images)[encoder.out_feature]
        torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        encoder.conv1.weight.mul_(2)
        assert not torch.allclose(encoder(images)[encoder.out_feature], folded)


def test_unknown_name():
    with pytest.raises(ValueError, match="resnet51.*known: resnet50"):
        build_image_encoder("resnet51")


def test_unknown_stride():
    with pytest.raises(ValueError, match="4 or 8"):
        build_image_encoder("conv_stem", stride=16)
