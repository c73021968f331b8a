"""Augmentation of the few-shot papers: each step against its definition written out in numpy, and pipelines as a whole."""

import pickle

import cv2
import numpy as np
import pytest

from ofaseg.data import few_shot_transforms as steps
from ofaseg.data.few_shot_transforms import NO_CLASS, FewShotEvaluation, FewShotTraining
from ofaseg.vocabulary import IGNORE_INDEX


def photo(height=60, width=80, seed=0):
    """Smooth colours, and a label map that follows from the red value."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return {"image": image, "label_map": (image[..., 0] // 64).astype(np.int16)}


def rng(seed=0):
    return np.random.default_rng(seed)


def grey(image):
    return (image @ np.array([0.299, 0.587, 0.114])).round()


@pytest.mark.parametrize("factor", [0.0, 0.53, 1.0, 1.47])
def test_colour_factors(factor):
    image = photo()["image"]
    values = image.astype(np.float64)
    np.testing.assert_array_equal(steps.brightness(image, factor), np.minimum(values * factor, 255).astype(np.uint8))
    mixed = values * factor + (1 - factor) * grey(image).mean()
    assert np.abs(steps.contrast(image, factor).astype(int) - np.clip(mixed, 0, 255).astype(int)).max() <= 1
    assert abs(steps.contrast(image, factor).mean() - (np.clip(mixed, 0, 255) - 0.5).mean()) < 0.6, "truncated, not rounded"
    mixed = values * factor + (1 - factor) * grey(image)[..., None]
    assert np.abs(steps.saturation(image, factor).astype(int) - np.clip(mixed.round(), 0, 255)).max() <= 1


def test_hue_turns_the_circle():
    red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    np.testing.assert_array_equal(steps.hue(red, 1 / 3)[0, 0], (0, 200, 0))
    np.testing.assert_array_equal(steps.hue(red, -1 / 3)[0, 0], (0, 0, 200))
    np.testing.assert_array_equal(steps.hue(red, 0.0), red)


def test_colour_jitter_draws_within_its_strength(monkeypatch):
    drawn = {name: [] for name in ("brightness", "contrast", "saturation", "hue")}
    order = []
    for name in drawn:

        def step(image, factor, name=name):
            drawn[name].append(factor)
            order.append(name)
            return image

        monkeypatch.setattr(steps, name, step)
    state = rng()
    for _ in range(200):
        steps.colour_jitter(photo(4, 4), state, 0.2)
    assert all(0.8 <= min(drawn[name]) < 0.83 and 1.17 < max(drawn[name]) <= 1.2 for name in ("brightness", "contrast", "saturation"))
    assert -0.2 <= min(drawn["hue"]) < -0.17 and 0.17 < max(drawn["hue"]) <= 0.2
    assert len({tuple(order[k : k + 4]) for k in range(0, 800, 4)}) == 24, "every order occurs"


def test_noise_has_the_variance_that_is_asked_for():
    image = np.full((200, 200, 3), 128, np.uint8)
    for low, high in ((10, 10), (50, 50)):
        noisy = steps.gauss_noise({"image": image}, rng(), (low, high))["image"].astype(np.float64)
        assert noisy.var() == pytest.approx(low + 1 / 12, rel=0.03) and noisy.mean() == pytest.approx(127.5, abs=0.1)
        assert abs(np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1]) < 0.02, "each channel has its own"
    extremes = np.tile(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), (50, 50, 1))
    noisy = steps.gauss_noise({"image": extremes}, rng())["image"]
    assert noisy[:, ::2].max() < 64 and noisy[:, 1::2].min() > 192, "cut at 0 and 255, not wrapped around"


def test_resized_crop_moves_image_and_labels_together():
    for seed in range(6):
        sample = steps.random_resized_crop(photo(seed=seed), rng(seed), 32)
        assert sample["image"].shape == (32, 32, 3) and sample["label_map"].shape == (32, 32)
        assert (np.abs(sample["label_map"] * 64 + 32 - sample["image"][..., 0].astype(int)) <= 32 + 40).mean() > 0.98
    assert any(not np.array_equal(steps.random_resized_crop(photo(), rng(k), 32)["image"], sample["image"]) for k in range(3))


@pytest.mark.parametrize("height, width", [(60, 80), (80, 60), (20, 50), (224, 224), (1, 3)])
def test_short_side_crop_takes_a_window_of_the_scaled_photo(height, width):
    """Also of photos that are smaller than the window."""
    rows, columns = np.mgrid[:height, :width]
    sample = {"image": np.stack([rows, columns, rows], -1).astype(np.uint8), "label_map": (columns * 100 // width).astype(np.int16)}
    out = steps.short_side_crop(sample, rng(3), 40)
    assert out["image"].shape == (40, 40, 3) and out["label_map"].shape == (40, 40)
    scaled = round(max(height, width) * 40 / min(height, width))
    offset = int((scaled - 40) * rng(3).random())
    if height > width:
        full = cv2.resize(sample["image"], (40, scaled), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(out["image"], full[offset : offset + 40])


def test_warp_is_the_affine_map_and_marks_what_it_uncovers():
    sample = photo()
    moved = steps.warp(sample, np.float64([[1, 0, 5], [0, 1, -3]]))
    np.testing.assert_array_equal(moved["image"][:-3, 5:], sample["image"][3:, :-5])
    np.testing.assert_array_equal(moved["label_map"][:-3, 5:], sample["label_map"][3:, :-5])
    assert (moved["label_map"][:, :5] == NO_CLASS).all() and (moved["label_map"][-3:] == NO_CLASS).all()
    assert not moved["image"][:, :5].any() and not moved["image"][-3:].any()
    ignoring = steps.warp(sample, np.float64([[1, 0, 5], [0, 1, -3]]), IGNORE_INDEX)
    assert (ignoring["label_map"][:, :5] == IGNORE_INDEX).all()


class Fixed:
    """A generator whose uniform numbers are given."""

    def __init__(self, *values):
        self.values = list(values)

    def uniform(self, low, high, size=None):
        value = self.values.pop(0)
        assert np.all(np.asarray(low) <= value) and np.all(value <= np.asarray(high))
        return np.broadcast_to(value, size) if size is not None else value


def test_shift_scale_rotate_is_its_matrix(monkeypatch):
    """Angle (counter-clockwise), scale about (W / 2, H / 2), then the shift in shares of width and height."""
    found = []
    monkeypatch.setattr(steps, "warp", lambda sample, matrix, border: found.append(matrix) or sample)
    steps.shift_scale_rotate(photo(60, 80), Fixed(15.0, 1.05, np.array([0.1, -0.05])), degrees=20.0)
    angle, scale, middle = np.deg2rad(15.0), 1.05, np.array([40.0, 30.0])
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    expected = np.column_stack([turn, middle - turn @ middle + (8.0, -3.0)])
    np.testing.assert_allclose(found[0], expected, atol=1e-9)


def test_random_affine_moves_three_corners(monkeypatch):
    found = []
    monkeypatch.setattr(steps, "warp", lambda sample, matrix, border: found.append(matrix) or sample)
    jitter = np.array([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]])
    steps.random_affine(photo(60, 60), Fixed(jitter))
    corners = np.array([[50.0, 50.0], [50.0, 10.0], [10.0, 10.0]])  # middle 30, a third of the side 20
    np.testing.assert_allclose(found[0] @ np.column_stack([corners, np.ones(3)]).T, (corners + jitter).T, atol=1e-4)


def test_the_displacement_field_that_is_left_out_changes_nothing():
    """Uniform noise of +-1 pixel, smoothed with sigma 50, moves nothing visibly, but for the outermost pixels, which darken a little."""
    side = 224
    noise = rng().uniform(-1, 1, (side, side)).astype(np.float32)
    smoothed = cv2.GaussianBlur(noise, (0, 0), 50, borderType=cv2.BORDER_REFLECT)
    assert np.abs(smoothed).max() < 1 / 64
    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    image = photo(side, side)["image"]
    moved = cv2.remap(image, columns + smoothed, rows + smoothed, cv2.INTER_LINEAR)
    np.testing.assert_array_equal(moved[1:-1, 1:-1], image[1:-1, 1:-1])
    assert np.abs(moved.astype(int) - image).max() <= 5


def test_training_pipeline_takes_its_steps_as_often_as_it_should(monkeypatch):
    names = ("random_resized_crop", "short_side_crop", "colour_jitter", "gauss_noise", "random_affine", "shift_scale_rotate")
    counts = dict.fromkeys(names, 0)
    for name in counts:

        def step(sample, *args, name=name, **kwargs):
            counts[name] += 1
            return sample

        monkeypatch.setattr(steps, name, step)
    state = rng()
    for _ in range(2000):
        FewShotTraining(16)(photo(16, 16), state)
    assert counts["random_resized_crop"] + counts["short_side_crop"] == 2000
    expected = [1000, 1000, 500, 500, 500, 500]
    np.testing.assert_allclose(list(counts.values()), expected, atol=90)
    counts.update(dict.fromkeys(counts, 0))
    plain = FewShotTraining(16, probability=0.0)(photo(16, 16), state)
    assert counts["short_side_crop"] == 1 and sum(counts.values()) == 1
    np.testing.assert_array_equal(plain["image"], photo(16, 16)["image"])


def test_pipelines_are_functions_of_the_generator():
    transform = pickle.loads(pickle.dumps(FewShotTraining.of_benchmark("coco20i", size=24)))
    assert (transform.colour, transform.degrees) == (0.2, 10.0) and FewShotTraining.of_benchmark("pascal5i").degrees == 20.0
    before = photo()
    outs = [transform(before, rng(k)) for k in (1, 1, 2)]
    np.testing.assert_array_equal(outs[0]["image"], outs[1]["image"])
    assert any(not np.array_equal(outs[0]["image"], transform(before, rng(k))["image"]) for k in range(2, 6))
    np.testing.assert_array_equal(before["image"], photo()["image"])
    for k in range(40):
        out = transform(before, rng(k))
        assert out["image"].shape == (24, 24, 3) and out["image"].dtype == np.uint8 and out["label_map"].dtype == np.int16


def test_borders_are_no_class_or_unlabelled():
    for ignore in (False, True):
        labels = np.concatenate([FewShotTraining(32, 1.0, ignore_borders=ignore)(photo(), rng(k))["label_map"].ravel() for k in range(20)])
        assert (labels == (IGNORE_INDEX if ignore else NO_CLASS)).any() and not (labels == (NO_CLASS if ignore else IGNORE_INDEX)).any()


def test_evaluation_averages_areas_and_takes_nearest_labels():
    sample = photo(64, 96)
    out = FewShotEvaluation(32)(sample, rng())
    means = sample["image"].astype(np.float64).reshape(32, 2, 32, 3, 3).mean((1, 3))
    assert np.abs(out["image"] - means).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(out["label_map"], sample["label_map"][::2, ::3])
    assert FewShotEvaluation(32).output_size(64, 96) == (32, 32)


def test_evaluation_at_the_original_resolution_changes_nothing():
    sample = photo(64, 96)
    out = FewShotEvaluation(None)(sample, rng())
    assert out["image"] is sample["image"] and out["label_map"] is sample["label_map"]
    assert FewShotEvaluation(None).output_size(64, 96) == (64, 96)
