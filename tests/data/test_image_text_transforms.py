"""Crops against torchvision, AutoAugment's operations against independent formulas, and the policy's table."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from ofaseg.data import image_text_transforms as transforms
from ofaseg.data.image_text_transforms import ImageTextEvaluation, ImageTextTraining


def photo(height=37, width=53, seed=0):
    """A smooth picture with noise; height and width differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (height + width)], -1)
    return (0.7 * base + rng.integers(0, 60, (height, width, 3))).astype(np.uint8)


def chw(image):
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def test_square_resize_and_centre_crop_are_torchvisions():
    picture = Image.fromarray(photo())
    resized = transforms.square_resize({"image": photo(), "other": 1}, 24)
    np.testing.assert_array_equal(resized["image"], np.array(F.resize(picture, [24, 24], InterpolationMode.BILINEAR, antialias=True)))
    assert resized["other"] == 1
    for height, width, size in ((37, 53, 24), (37, 53, 30), (20, 53, 24), (20, 11, 24)):
        image = photo(height, width)
        expected = np.array(F.center_crop(Image.fromarray(image), [size, size]))
        np.testing.assert_array_equal(transforms.centre_crop({"image": image}, size)["image"], expected)
    evaluated = ImageTextEvaluation(40, 32)({"image": photo()}, np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(evaluated, np.array(F.center_crop(F.resize(picture, [40, 40]), [32, 32])))


def test_random_resized_crop_is_the_window_resized():
    for seed in range(5):
        top, left, height, width = transforms.crop_window(37, 53, np.random.default_rng(seed))
        expected = F.resized_crop(Image.fromarray(photo()), top, left, height, width, [24, 24], InterpolationMode.BILINEAR)
        got = transforms.random_resized_crop({"image": photo()}, np.random.default_rng(seed), 24)["image"]
        np.testing.assert_array_equal(got, np.array(expected))


def test_windows_fill_their_range():
    rng = np.random.default_rng(0)
    windows = np.array([transforms.crop_window(300, 400, rng) for _ in range(3000)])
    top, left, height, width = windows.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    share, shape = height * width / (300 * 400), width / height
    assert 0.59 < share.min() < 0.61 and 0.98 < share.max() <= 1.0
    assert 0.74 < shape.min() < 0.9 and 1.3 < shape.max() < 1.35
    assert top.max() > 60 and left.max() > 100  # windows move over the whole picture
    wide = np.array([transforms.crop_window(300, 400, rng, (0.2, 0.3), (1.5, 2.0)) for _ in range(50)])
    assert (1.45 < wide[:, 3] / wide[:, 2]).all() and (wide[:, 3] / wide[:, 2] < 2.05).all()  # width by height
    assert transforms.crop_window(10, 100, rng, (0.9, 1.0)) == (0, 43, 10, 13)  # none fits: the middle, 4 : 3
    assert transforms.crop_window(100, 10, rng, (0.9, 1.0)) == (43, 0, 13, 10)


def blend(image, degenerate, factor):
    return np.clip(degenerate + (image.astype(np.float64) - degenerate) * factor, 0, 255)


def grey(image):
    return np.array(Image.fromarray(image).convert("L")).astype(np.float64)


def expected_of(name, image, strength):
    """An independent formulation of each operation: NumPy or torchvision's tensor code."""
    if name == "posterize":
        return image & (256 - 2 ** (8 - round(strength)))
    if name == "solarize":
        return np.where(image < strength, image, 255 - image)
    if name == "invert":
        return 255 - image
    if name == "color":
        return blend(image, grey(image)[..., None], 1 + strength)
    if name == "contrast":
        return blend(image, int(grey(image).mean() + 0.5), 1 + strength)
    if name in ("equalize", "autocontrast"):
        return getattr(F, name)(chw(image)).permute(1, 2, 0).numpy()
    if name == "sharpness":
        return F.adjust_sharpness(chw(image), 1 + strength).permute(1, 2, 0).numpy()
    if name == "rotate":
        return F.rotate(chw(image), strength, fill=[128, 128, 128]).permute(1, 2, 0).numpy()
    raise AssertionError(name)


@pytest.mark.parametrize("name", sorted(set(transforms.OPERATIONS) - {"shear_x"}))
def test_operations(name):
    image = photo()
    for level in (2, 7) if name in transforms._LINEAR else (0,):
        for sign in (1, -1) if name in transforms.SIGNED else (1,):
            strength = sign * transforms.magnitude(name, level)
            got = np.array(transforms.OPERATIONS[name](Image.fromarray(image), strength)).astype(np.float64)
            difference = np.abs(got - expected_of(name, image, strength))
            assert np.quantile(difference, 0.97) <= 1, (name, level, sign)  # borders of turned pictures round differently
            assert not np.array_equal(got, image)


def test_shear_moves_rows_and_fills_with_grey():
    picture = np.full((21, 31, 3), 200, np.uint8)
    picture[:, 15] = 0  # a vertical line
    for slope in (0.3, -0.3):
        sheared = np.array(transforms.OPERATIONS["shear_x"](Image.fromarray(picture), slope))
        lowest = [int(np.argmin(sheared[row, :, 0])) for row in (0, 10, 20)]
        assert lowest == [15 - round(slope * y) for y in (0.5, 10.5, 20.5)]
        corner = sheared[20, 0 if slope < 0 else 30]
        assert corner.tolist() == [128, 128, 128]


def test_rotation_is_counter_clockwise_always():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 30:] = 255  # a ray to the right goes up
    seen = set()
    for seed in range(9):
        degrees = transforms.magnitude("rotate", 1 + seed % 9)
        rotated = np.array(transforms.OPERATIONS["rotate"](Image.fromarray(image), degrees))
        ray = np.argwhere((rotated == 255).all(-1))
        seen.add(bool((ray[:, 0] <= 20).all() and ray[:, 0].min() < 20))
    assert seen == {True} and "rotate" not in transforms.SIGNED


def test_magnitudes():
    assert [round(transforms.magnitude("posterize", k)) for k in range(10)] == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    np.testing.assert_allclose([transforms.magnitude("solarize", k) for k in (0, 5, 9)], [256, 256 * 4 / 9, 0])
    assert transforms.magnitude("rotate", 9) == 30 and transforms.magnitude("shear_x", 9) == 0.3
    assert transforms.magnitude("color", 0) == 0 and transforms.magnitude("contrast", 8) == pytest.approx(0.8)
    assert transforms.magnitude("equalize", 7) == 0


def test_the_policy_is_the_published_one():
    """Against torchvision's copy of the same policy, without its sign of rotations."""
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    published = AutoAugment(AutoAugmentPolicy.IMAGENET).policies

    def key(pair):
        names = [name.lower().replace("_", "") for name, _, _ in pair]
        levels = [level if name.lower() in ("posterize", "solarize", "rotate", "color", "contrast", "sharpness", "shearx") else None
                  for name, (_, _, level) in zip(names, pair)]  # fmt: skip
        return tuple(zip(names, (probability for _, probability, _ in pair), levels))

    assert len(transforms.POLICY) == 25
    assert Counter(map(key, transforms.POLICY)) == Counter(map(key, published))


def test_pipelines_follow_the_generator():
    pipeline = pickle.loads(pickle.dumps(ImageTextTraining(24)))
    image = photo()
    kept = image.copy()
    first = [pipeline({"image": image}, np.random.default_rng(seed))["image"] for seed in range(30)]
    again = [ImageTextTraining(24)({"image": image}, np.random.default_rng(seed))["image"] for seed in range(30)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert all(result.shape == (24, 24, 3) and result.dtype == np.uint8 for result in first)
    plain = [ImageTextTraining(24, autoaugment=False)({"image": image}, np.random.default_rng(seed))["image"] for seed in range(30)]
    changed = sum(not np.array_equal(a, b) for a, b in zip(first, plain))
    assert 20 <= changed < 30
    np.testing.assert_array_equal(image, kept)
