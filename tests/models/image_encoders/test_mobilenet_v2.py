"""MobileNetV2 with folded norms: padding, strides, and real weights against stored answers."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ofaseg.models.image_encoders.mobilenet_v2 import MobileNetV2, SameConv2d, arrays_state

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("side, stride, kernel, dilation", [(7, 2, 3, 1), (8, 2, 3, 1), (9, 1, 3, 2), (8, 1, 5, 1), (5, 2, 1, 1)])
def test_same_padding_written_out(side, stride, kernel, dilation):
    torch.manual_seed(0)
    conv = SameConv2d(2, 3, kernel, stride, dilation=dilation)
    x = torch.randn(1, 2, side, side + 3)
    ours = conv(x)
    for axis, length in enumerate((side, side + 3)):
        assert ours.shape[2 + axis] == -(-length // stride)
    weight, bias = conv.weight.detach(), conv.bias.detach()
    starts = []
    for length in (side, side + 3):
        total = max(0, (-(-length // stride) - 1) * stride + (kernel - 1) * dilation + 1 - length)
        starts.append(total // 2)
    for row in range(ours.shape[2]):
        for column in range(ours.shape[3]):
            value = bias.clone()
            for i in range(kernel):
                for j in range(kernel):
                    y, z = row * stride - starts[0] + i * dilation, column * stride - starts[1] + j * dilation
                    if 0 <= y < side and 0 <= z < side + 3:
                        value += weight[:, :, i, j] @ x[0, :, y, z]
            torch.testing.assert_close(ours[0, :, row, column].detach(), value, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_strides():
    torch.manual_seed(0)
    coarse, fine = MobileNetV2(32).eval(), MobileNetV2(16).eval()
    fine.load_state_dict(coarse.state_dict())
    image = torch.randn(1, 3, 96, 65)
    assert coarse(image).shape == (1, 320, 3, 3) and fine(image).shape == (1, 320, 6, 5)
    before = coarse.features[:14](image)  # the last layer that both compute alike
    torch.testing.assert_close(before, fine.features[:14](image))
    with pytest.raises(ValueError, match="choose 16 or 32"):
        MobileNetV2(8)
    with pytest.raises(ValueError, match="no classifier"):
        coarse.classify(image)


@torch.no_grad()
def test_a_dilated_layer_sees_every_second_cell_of_the_finer_grid():
    """The stride that was taken away leaves cells at odd places; those at even ones are what the coarse network computes."""
    torch.manual_seed(0)
    coarse, fine = MobileNetV2(32).eval(), MobileNetV2(16).eval()
    fine.load_state_dict(coarse.state_dict())
    x = torch.randn(1, 96, 9, 9)  # odd: padding is symmetric, so both grids start at the same place
    torch.testing.assert_close(coarse.features[14:18](x), fine.features[14:18](x)[:, :, ::2, ::2], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_real_weights_name_real_photos(real_data):
    folder = real_data / "weights"
    model = MobileNetV2(32, classes=1001).eval()
    with np.load(folder / "mobilenet_v2_imagenet1001.npz") as arrays:
        model.load_state_dict(arrays_state(arrays), strict=True)
    for name, expected in json.loads((folder / "check" / "expected.json").read_text())["imagenet"].items():
        photo = torch.from_numpy(np.asarray(Image.open(folder / "check" / name).convert("RGB")).astype(np.float32) / 127.5 - 1)
        photo = F.interpolate(photo.permute(2, 0, 1)[None], size=(224, 224), mode="bilinear", align_corners=False)
        values, classes = model.classify(photo).softmax(1)[0].topk(3)
        assert classes.tolist() == [row[0] for row in expected], name
        np.testing.assert_allclose(values, [row[2] for row in expected], atol=0.02)
