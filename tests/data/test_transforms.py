"""Transforms: the official semantics, against mmsegmentation's own code on the same random numbers and against plain rules."""

import sys
import types

import cv2
import numpy as np
import pytest
import torch

from ofaseg.data import transforms
from ofaseg.vocabulary import IGNORE_INDEX


def sample(height=60, width=97, classes=5, seed=0, dtype=np.int32) -> dict:
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (8, 12, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    label_map = cv2.resize(rng.integers(-1, classes, (6, 9)).astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
    return {"image": image, "label_map": label_map.astype(dtype), "id": "x"}


class Recorded:
    """numpy.random's functions as mmsegmentation calls them, drawing from a Generator."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def randint(self, low, high=None):
        return int(self.rng.integers(low, high))

    def uniform(self, low, high):
        return self.rng.uniform(low, high)

    def random_sample(self):
        return self.rng.random()

    def choice(self, values, p):
        """As numpy draws it: one number against the running sum."""
        return values[int(np.searchsorted(np.cumsum(p), self.rng.random(), side="right"))]


@pytest.fixture(scope="module")
def mmseg():
    """mmsegmentation's transforms; mmcv-lite has no compiled operators, and none is needed here."""
    pytest.importorskip("mmseg")

    class NoOperators(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_, **__: None

    if "mmcv._ext" not in sys.modules:
        try:
            import mmcv._ext  # noqa: F401
        except ImportError:
            sys.modules["mmcv._ext"] = NoOperators("mmcv._ext")
    from mmcv.transforms import RandomFlip, RandomResize, Resize
    from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop
    from mmseg.datasets.transforms import transforms as module

    classes = (Resize, RandomResize, RandomFlip, PhotoMetricDistortion, RandomCrop)
    return types.SimpleNamespace(module=module, **{cls.__name__: cls for cls in classes})


@pytest.fixture
def recorded(monkeypatch, mmseg):
    """Makes mmsegmentation draw from the seeded generator that the returned function gives out."""

    def use(seed):
        numbers = Recorded(seed)
        for name in ("randint", "uniform", "random_sample", "choice"):
            monkeypatch.setattr(np.random, name, getattr(numbers, name))
        monkeypatch.setattr(mmseg.module, "random", numbers)
        return np.random.default_rng(seed)

    return use


class TestAgainstMmsegmentation:
    @pytest.mark.parametrize("seed", range(24))
    def test_photometric_distortion(self, mmseg, recorded, seed):
        ours, rng = sample(seed=seed), recorded(seed)
        theirs = mmseg.PhotoMetricDistortion()({"img": ours["image"][..., ::-1].copy()})["img"][..., ::-1]
        np.testing.assert_array_equal(transforms.photometric_distortion(ours, rng)["image"], theirs)

    @pytest.mark.parametrize("seed", range(12))
    @pytest.mark.parametrize("size", [(60, 97), (97, 60), (33, 33)])
    def test_random_scale(self, mmseg, recorded, seed, size):
        ours, rng = sample(*size, seed=seed, dtype=np.int16), recorded(seed)
        resize = mmseg.RandomResize(scale=(256, 64), ratio_range=(0.5, 2.0), keep_ratio=True)
        assert_equal(transforms.random_scale(ours, rng, short=64, long=256, min_size=0), resize(mm_inputs(ours)))

    @pytest.mark.parametrize("seed", range(12))
    @pytest.mark.parametrize("count_ignored", [True, False])
    @pytest.mark.parametrize("classes, dtype", [(3, np.int32), (3, np.int16), (255, np.int16), (256, np.int16), (300, np.int32)])
    def test_random_crop(self, mmseg, recorded, seed, count_ignored, classes, dtype):
        ours, rng = sample(seed=seed, classes=classes, dtype=dtype), recorded(seed)
        ours["label_map"][:, :70] = classes - 1 if seed % 2 else IGNORE_INDEX  # many places are refused
        crop = mmseg.RandomCrop(crop_size=(20, 30), cat_max_ratio=0.5, ignore_index=999 if count_ignored else IGNORE_INDEX)
        theirs = crop(mm_inputs(ours))
        out = transforms.random_crop(ours, rng, (20, 30), cat_max_ratio=0.5, count_ignored=count_ignored)
        assert_equal(out, theirs)

    @pytest.mark.parametrize("size", [(60, 97), (97, 60), (33, 33), (20, 200)])
    def test_resize(self, mmseg, size):
        ours = sample(*size, dtype=np.int16)
        theirs = mmseg.Resize(scale=(128, 48), keep_ratio=True)(mm_inputs(ours))
        assert_equal(transforms.resize_short_side(ours, 48, 128), theirs)

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("probability", [0.25, 0.5])
    def test_random_flip(self, mmseg, recorded, seed, probability):
        ours, rng = sample(seed=seed, dtype=np.int16), recorded(seed)
        theirs = mmseg.RandomFlip(prob=probability)(mm_inputs(ours))
        assert_equal(transforms.random_flip(ours, rng, probability), theirs)

    @pytest.mark.parametrize("seed", range(24))
    def test_all_of_them_in_a_row(self, mmseg, recorded, seed):
        """The training pipeline but for the least size, which mmsegmentation does not know."""
        ours, rng = sample(seed=seed, classes=3, dtype=np.int16), recorded(seed)
        theirs = mm_inputs(ours) | {"img": ours["image"][..., ::-1].copy()}
        for transform in (
            mmseg.RandomResize(scale=(256, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
            mmseg.RandomCrop(crop_size=(24, 30), cat_max_ratio=0.5, ignore_index=999),
            mmseg.RandomFlip(prob=0.5),
            mmseg.PhotoMetricDistortion(),
        ):
            theirs = transform(theirs)
        out = transforms.random_scale(ours, rng, short=64, long=256, min_size=0)
        out = transforms.random_flip(transforms.random_crop(out, rng, (24, 30), cat_max_ratio=0.5), rng)
        assert_equal(transforms.photometric_distortion(out, rng), theirs | {"img": theirs["img"][..., ::-1]})


def mm_inputs(data: dict) -> dict:
    """A sample as mmsegmentation passes it on."""
    image, labels = data["image"].copy(), data["label_map"].astype(np.int32)
    return {"img": image, "img_shape": image.shape[:2], "gt_seg_map": labels, "seg_fields": ["gt_seg_map"]}


def assert_equal(ours: dict, theirs: dict) -> None:
    np.testing.assert_array_equal(ours["image"], theirs["img"])
    np.testing.assert_array_equal(ours["label_map"], theirs["gt_seg_map"])


class TestResize:
    @pytest.mark.parametrize(
        "size, expected",
        [((480, 640), (512, 683)), ((640, 480), (683, 512)), ((512, 683), (512, 683)), ((100, 1000), (205, 2048)), ((37, 37), (512, 512))],
    )
    def test_short_side(self, size, expected):
        assert transforms.short_side_size(*size, 512, 2048) == expected

    def test_axes_are_not_swapped(self):
        out = transforms.resize_short_side(sample(60, 97), 30, 400)
        assert out["image"].shape == (30, 49, 3) and out["label_map"].shape == (30, 49)

    def test_nearest_rule(self):
        """Source index floor(i * in / out); with an integer factor the top-left pixel of each cell."""
        labels = np.arange(32 * 48, dtype=np.int32).reshape(32, 48)
        for height, width in ((8, 12), (13, 31), (50, 100)):
            out = transforms.resize({"image": np.zeros((32, 48, 3), np.uint8), "label_map": labels}, height, width)["label_map"]
            rows, columns = np.arange(height) * 32 // height, np.arange(width) * 48 // width
            np.testing.assert_array_equal(out, labels[rows][:, columns])
            assert out.dtype == np.int32

    def test_bilinear_without_antialias(self):
        """Halving averages the two middle pixels of each cell of four, whatever lies outside them."""
        image = np.zeros((8, 8, 3), np.uint8)
        image[:, [0, 3, 4, 7]] = 200
        out = transforms.resize({"image": image}, 2, 2)["image"]
        assert out.max() == 0

    def test_corner_of_a_resized_image(self):
        """Any corner of any size, the smallest changes of size included, for which OpenCV has a case of its own."""
        rng, whole = np.random.default_rng(0), sample(200, 260)["image"]
        for trial in range(400):
            image = whole[: rng.integers(1, 201), : rng.integers(1, 261)]
            factor = (rng.uniform(0.1, 1.0), rng.uniform(1.0, 2.5), rng.uniform(0.97, 1.03), 0.5, 2.0)[trial % 5]
            height, width = (max(1, round(factor * side)) for side in image.shape[:2])
            bottom, right = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
            expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)[:bottom, :right]
            np.testing.assert_array_equal(transforms._resize_corner(image, height, width, bottom, right), expected)

    @pytest.mark.parametrize("seed", range(20))
    def test_random_scale_keeps_the_minimum(self, seed):
        out = transforms.random_scale(sample(60, 97), np.random.default_rng(seed), short=32, long=128, min_size=32)
        height, width = out["image"].shape[:2]
        assert 32 <= height <= 64 and abs(width / height - 97 / 60) < 0.03
        assert out["label_map"].shape == (height, width)

    def test_a_third_of_the_scales_is_the_minimum(self):
        rng = np.random.default_rng(0)
        data = {"image": np.zeros((10, 20, 3), np.uint8)}
        minimal = [transforms.random_scale(data, rng, 64, 256, min_size=64)["image"].shape[0] == 64 for _ in range(600)]
        assert abs(np.mean(minimal) - 1 / 3) < 0.06


class TestCropAndFlip:
    def test_crop_is_cut_from_one_place(self):
        rows, columns = np.mgrid[:40, :50]
        image = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
        data = {"image": image, "label_map": (rows * 1000 + columns).astype(np.int32)}
        out = transforms.random_crop(data, np.random.default_rng(1), (16, 24))
        assert out["image"].shape == (16, 24, 3)
        np.testing.assert_array_equal(out["label_map"], out["image"][..., 0].astype(int) * 1000 + out["image"][..., 1])

    def test_every_place_occurs(self):
        rng = np.random.default_rng(0)
        data = {"image": np.zeros((3, 4, 3), np.uint8), "label_map": np.arange(12, dtype=np.int32).reshape(3, 4)}
        crops = {transforms.random_crop(data, rng, 2)["label_map"][0, 0] for _ in range(200)}
        assert crops == {0, 1, 2, 4, 5, 6}

    def test_varied_crops_are_preferred(self):
        labels = np.zeros((64, 64), np.int32)
        labels[:, 40:] = 1
        data = {"image": np.zeros((64, 64, 3), np.uint8), "label_map": labels}

        def share(ratio):
            rng = np.random.default_rng(0)
            crops = [transforms.random_crop(data, rng, 16, cat_max_ratio=ratio)["label_map"] for _ in range(100)]
            return np.mean([len(np.unique(crop)) == 2 for crop in crops])

        assert share(1.0) < 0.5 < 0.8 < share(0.75)

    @pytest.mark.parametrize("ratio", [0.4, 0.5, 0.75, 0.9])
    @pytest.mark.parametrize("count_ignored", [True, False])
    def test_varied_means_no_label_covers_too_much(self, ratio, count_ignored):
        """Against a plain count, with shares on both sides of the limit and just at it."""
        rng, found = np.random.default_rng(0), []
        for _ in range(300):
            labels = rng.choice([-1, 0, 1, 254, 255, 30_000], 100, p=rng.dirichlet([2.0] * 6))
            share = int(100 * ratio) + int(rng.integers(-1, 2))
            labels[:share] = rng.choice([-1, 7, labels[0]])
            labels = rng.permutation(labels).reshape(5, 20).astype(np.int16)
            values, counts = np.unique(labels, return_counts=True)
            counts = counts if count_ignored else counts[values != IGNORE_INDEX]
            expected = len(counts) > 1 and counts.max() / counts.sum() < ratio
            assert transforms._is_varied(labels, ratio, count_ignored) == expected
            found.append(expected)
        assert 20 < sum(found) < 290

    def test_small_images_are_padded(self):
        out = transforms.random_crop(sample(10, 14), np.random.default_rng(0), 20, cat_max_ratio=1.0)
        assert out["image"].shape == (20, 20, 3)
        assert (out["label_map"][10:] == IGNORE_INDEX).all() and (out["label_map"][:, 14:] == IGNORE_INDEX).all()
        assert (out["image"][10:] == transforms.PADDING_COLOUR).all()
        np.testing.assert_array_equal(out["image"][:10, :14], sample(10, 14)["image"])

    def test_flip_moves_both(self):
        data = sample()
        out = transforms.random_flip(data, np.random.default_rng(0), 1.0)
        np.testing.assert_array_equal(out["image"], data["image"][:, ::-1])
        np.testing.assert_array_equal(out["label_map"], data["label_map"][:, ::-1])
        assert transforms.random_flip(data, np.random.default_rng(0), 0.0)["image"] is data["image"]


class TestColourArithmetic:
    """The quick forms equal float32 arithmetic with truncation for every value, also where a product almost is a whole number."""

    VALUES = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)

    def expected(self, factor, offset):
        values = self.VALUES.astype(np.float32) * np.float32(factor) + np.float32(offset)
        return np.clip(values, 0, 255).astype(np.uint8)

    def test_brightness(self):
        close = [whole + sign * step for whole in (-32, -1, 0, 5) for sign in (-1, 1) for step in (0.0, 1e-9, 1e-5, 1e-4, 0.5)]
        for offset in (*np.random.default_rng(0).uniform(-32, 32, 500), *close):
            np.testing.assert_array_equal(transforms._brighten(self.VALUES, offset), self.expected(1.0, offset))

    def test_contrast_and_saturation(self):
        ratios = [part / whole for whole in (1, 3, 7, 100, 255) for part in (whole // 2 + 1, whole)]
        close = [ratio * (1 + change) for ratio in ratios for change in (0, 1e-9, -1e-7)]
        for factor in (*np.random.default_rng(0).uniform(0.5, 1.5, 2000), *close, 0.0, 0.5, 1.0, 1.5):
            np.testing.assert_array_equal(transforms._multiply(self.VALUES, factor), self.expected(factor, 0.0))
            grey = np.ascontiguousarray(self.VALUES[:, :5, 0])  # an odd number of values, one channel
            np.testing.assert_array_equal(transforms._multiply(grey, factor), self.expected(factor, 0.0)[:, :5, 0])

    def test_the_input_stays(self):
        before = sample()
        for seed in range(20):
            data = sample()
            transforms.photometric_distortion(data, np.random.default_rng(seed))
            np.testing.assert_array_equal(data["image"], before["image"])


class TestPipeline:
    def test_pure_function_of_the_generator(self):
        data = sample(80, 120)
        before = data["image"].copy(), data["label_map"].copy()
        first = transforms.random_scale_crop_flip(data, np.random.default_rng((1, 2, 3)), size=48)
        second = transforms.random_scale_crop_flip(data, np.random.default_rng((1, 2, 3)), size=48)
        other = transforms.random_scale_crop_flip(data, np.random.default_rng((1, 2, 4)), size=48)
        np.testing.assert_array_equal(first["image"], second["image"])
        np.testing.assert_array_equal(first["label_map"], second["label_map"])
        assert not np.array_equal(first["image"], other["image"])
        np.testing.assert_array_equal(data["image"], before[0])
        np.testing.assert_array_equal(data["label_map"], before[1])
        assert first["image"].shape == (48, 48, 3) and first["label_map"].shape == (48, 48) and first["id"] == "x"

    @pytest.mark.parametrize("seed", range(40))
    @pytest.mark.parametrize("size", [(60, 97), (97, 60), (48, 48), (31, 100), (96, 131)])
    def test_is_its_steps_in_turn(self, seed, size):
        """The photo is resized only as far as the crop reaches; the pixels and the random numbers that follow are the same."""
        data = sample(*size, seed=seed, classes=2)
        data["label_map"][:, : 70 * (seed % 2)] = 1  # some places are refused
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        out = transforms.random_scale_crop_flip(data, rngs[0], size=48, long=192, distort=seed % 4 == 0)
        steps = transforms.random_scale(data, rngs[1], short=48, long=192, min_size=48)
        steps = transforms.random_flip(transforms.random_crop(steps, rngs[1], 48), rngs[1])
        steps = transforms.photometric_distortion(steps, rngs[1]) if seed % 4 == 0 else steps
        assert_equal(out, {"img": steps["image"], "gt_seg_map": steps["label_map"]})
        assert rngs[0].random() == rngs[1].random()

    def test_image_alone(self):
        out = transforms.random_scale_crop_flip({"image": sample()["image"]}, np.random.default_rng(0), size=32)
        assert out["image"].shape == (32, 32, 3) and "label_map" not in out

    def test_to_tensors(self):
        data = transforms.random_crop(sample(8, 12), np.random.default_rng(0), (6, 9), cat_max_ratio=1.0)
        out = transforms.to_tensors(data)
        assert out["image"].dtype == torch.uint8 and out["image"].shape == (3, 6, 9) and out["image"].is_contiguous()
        assert out["label_map"].dtype == torch.int32 and out["label_map"].shape == (6, 9)
        np.testing.assert_array_equal(out["image"].numpy().transpose(1, 2, 0), data["image"])
