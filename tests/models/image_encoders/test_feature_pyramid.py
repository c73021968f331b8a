"""Feature pyramids: torchvision's ResNet with the same weights, the dilations of the last stage, timm's models, wrong names."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from ofaseg.models.image_encoders.feature_pyramid import LEVELS, SIZES, STRIDES, ResNetPyramid, TimmPyramid, build_pyramid
from ofaseg.models.image_encoders.resnet import FrozenBatchNorm2d


def randomise(model):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
    return model


def test_against_torchvision():
    """All four stages, with folded norms (no gradient) and without."""
    blocks = [1, 2, 1, 1]
    ours = randomise(ResNetPyramid(blocks)).eval()
    theirs = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, blocks, num_classes=1, norm_layer=torchvision.ops.FrozenBatchNorm2d
    ).eval()
    missing, unknown = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"} and not unknown
    photos = torch.randn(1, 3, 40, 72)
    x, expected = theirs.maxpool(F.relu(theirs.bn1(theirs.conv1(photos)))), {}
    for number, level in enumerate(LEVELS, 1):
        x = getattr(theirs, f"layer{number}")(x)
        expected[level] = x
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            found = ours(photos)
        for level in LEVELS:
            assert found[level].shape[1] == ours.out_channels[level]
            scale = expected[level].abs().max()
            torch.testing.assert_close(found[level] / scale, expected[level] / scale, atol=2e-6, rtol=0, msg=level)


def small_deep() -> ResNetPyramid:
    return randomise(ResNetPyramid(blocks=(1, 1, 1, 3), width=8, deep_stem=True, last_dilations=(1, 2, 4)))


def test_the_deep_stem_and_the_dilations():
    model = small_deep()
    assert [tuple(getattr(model, f"conv{n}").weight.shape[:2]) for n in (1, 2, 3)] == [(8, 3), (8, 8), (16, 8)]
    convolutions = [block.conv2 for block in model.layer4]
    assert [(conv.dilation[0], conv.padding[0], conv.stride[0]) for conv in convolutions] == [(1, 1, 2), (2, 2, 1), (4, 4, 1)]
    photos = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        folded = model.eval()(photos)
        plain = {level: x.detach() for level, x in model.train()(photos).items()}
    for level in LEVELS:
        assert folded[level].shape[2:] == (64 // STRIDES[level], 96 // STRIDES[level])
        torch.testing.assert_close(folded[level], plain[level], atol=1e-4, rtol=1e-4)


def test_published_sizes():
    assert SIZES["resnet101c"] == dict(blocks=(3, 4, 23, 3), deep_stem=True, last_dilations=(1, 2, 4))
    with torch.device("meta"):
        r50, r101c = build_pyramid("resnet50"), build_pyramid("resnet101c")
    assert (len(r50.state_dict()), len(r101c.state_dict())) == (265, 530)
    assert r50.out_channels == dict(zip(LEVELS, (256, 512, 1024, 2048)))
    assert len(list(r50.parameters())) == 53  # convolutions only: norms are buffers


@torch.no_grad()
def test_timm():
    model = build_pyramid("timm:resnet10t").eval()
    found = model(torch.randn(1, 3, 64, 96))
    for level in LEVELS:
        assert found[level].shape == (1, model.out_channels[level], 64 // STRIDES[level], 96 // STRIDES[level])


def test_wrong_names():
    with pytest.raises(ValueError, match="unknown image encoder 'resnet51'; known: resnet50, resnet101c"):
        build_pyramid("resnet51")
    with pytest.raises(ValueError, match="timm has no feature pyramid 'no_such_model'"):
        build_pyramid("timm:no_such_model")
    with pytest.raises(ValueError, match="needed are"):
        TimmPyramid("vit_tiny_patch16_224")
