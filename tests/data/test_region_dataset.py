"""Regions cut out of photos: pixels of the class inside the mask and nothing else, randomness, order, batches, bad rows."""

import numpy as np
import pytest
import torch

from ofaseg.data.codec import CodecError
from ofaseg.data.region_dataset import RegionDataset
from ofaseg.data.region_transforms import RegionEvaluation, RegionTraining, cut_box
from ofaseg.data.regions import TASKS, Regions, find_regions
from ofaseg.data.shards import ShardReader
from tests.toy_freeseg import vocabulary_of, write_segment_shards

SIDE = 32


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    root = tmp_path_factory.mktemp("regions")
    write_segment_shards(root, "train", 4, sizes=((72, 96), (50, 40)), seed=3)
    return ShardReader.for_split(str(root), "train")


def dataset(reader, transform=None, training=True, tasks=TASKS, **options):
    regions = find_regions(reader, vocabulary_of(), tasks)
    return RegionDataset(reader, vocabulary_of(), regions, transform or RegionTraining((SIDE, SIDE)), training, **options)


@pytest.mark.parametrize("transform", [RegionTraining((40, SIDE)), RegionEvaluation(SIDE)], ids=["training", "evaluation"])
def test_a_mask_covers_its_class(reader, transform):
    """The brightest colour is that of the class wherever the mask is; every region keeps a pixel; all tasks."""
    data, seen, right = dataset(reader, transform), set(), []
    for index in range(len(data)):
        sample = data[index]
        size = (40, SIDE) if isinstance(transform, RegionTraining) else (SIDE, SIDE)
        assert sample["image"].shape == (3, *size) and sample["label_map"].shape == size
        mask = sample["label_map"].bool()
        assert mask.any()
        right.append((sample["image"].int().argmax(0)[mask] == sample["class_id"]).float().mean())
        seen.add((sample["task"], sample["class_id"]))
    assert len(seen) == 8  # three classes, two of them things
    assert min(right) > 0.5 and np.mean(right) > 0.9  # photos are resized bilinearly, masks are not


def test_evaluation_shows_the_whole_box_and_keeps_its_aspect():
    image = np.stack([*np.meshgrid(np.arange(60) * 4, np.arange(40) * 6), np.full((40, 60), 9)], -1).astype(np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[5:25, 10:50] = 1  # 20 x 40
    mask[5, 10] = 0
    sample = RegionEvaluation(20)({"image": image, "label_map": mask}, np.random.default_rng(0))
    assert sample["image"].shape == (20, 20, 3) and not sample["label_map"][:5].any() and not sample["label_map"][15:].any()
    assert sample["label_map"][5:15].mean() > 0.98
    halves = image[5:25, 10:50].reshape(10, 2, 20, 2, 3).mean((1, 3))
    assert np.abs(sample["image"][5:15].astype(float) - halves)[1:-1, 1:-1].max() <= 1  # of a slope, as a mean of four pixels
    assert cut_box({"image": image, "label_map": mask})["label_map"].shape == (20, 40)
    tiny = np.zeros((40, 60), np.uint8)
    tiny[39, 59] = 1
    assert RegionEvaluation(20)({"image": image, "label_map": tiny}, np.random.default_rng(0))["label_map"].all()


def test_a_window_without_the_region_is_drawn_again():
    """An L-shaped region: most of its box is not its own."""
    mask = np.zeros((60, 60), np.uint8)
    mask[:, 0], mask[59, :] = 1, 1
    transform, image = RegionTraining((16, 16)), np.zeros((60, 60, 3), np.uint8)
    for seed in range(50):
        assert transform({"image": image, "label_map": mask}, np.random.default_rng(seed))["label_map"].any()


def test_randomness_is_of_seed_epoch_and_index(reader):
    data, again, other = dataset(reader), dataset(reader), dataset(reader, seed=2)
    assert torch.equal(data[5]["image"], again[5]["image"]) and not torch.equal(data[5]["image"], other[5]["image"])
    assert np.array_equal(data.ordered_indices(), again.ordered_indices())
    for one in (data, again):
        one.set_epoch(2)
    assert torch.equal(data[5]["image"], again[5]["image"]) and not torch.equal(data[5]["image"], dataset(reader)[5]["image"])
    assert sorted(data.ordered_indices()) == list(range(len(data))) != list(data.ordered_indices())


def test_published_order(reader):
    """Unshuffled, by task and class."""
    data = dataset(reader, keep_order=True)
    kinds = [(data.regions.tasks[k], data.regions.classes[k]) for k in data.ordered_indices()]
    assert kinds == sorted(kinds)


def test_batches(reader):
    """Each region has its own task, or, as published, that of the first."""
    data = dataset(reader)
    places = [int(np.flatnonzero(data.regions.tasks == task)[0]) for task in (2, 0, 2)]
    batch = data.collater([data[k] for k in places])
    inputs = batch["net_input"]
    assert inputs["tasks"] == ("semantic", "panoptic") and inputs["task_rows"].tolist() == [1, 0, 1]
    assert inputs["image"].shape == (3, 3, SIDE, SIDE) and inputs["image"].dtype == torch.uint8
    assert inputs["masks"].shape == (3, SIDE, SIDE) and inputs["masks"].dtype == torch.bool
    assert batch["target"].tolist() == data.regions.classes[places].tolist() and batch["nsentences"] == 3
    published = dataset(reader, task_of_first=True).collater([data[k] for k in places])["net_input"]
    assert published["tasks"] == ("panoptic",) and published["task_rows"].tolist() == [0, 0, 0]


def test_a_region_that_is_gone_is_a_bad_row(reader):
    """As when shards were changed behind the file that keeps their segments."""
    arrays = [np.asarray(values) for values in ([2, 2], [0, 0], [70_000, 5], [2, 2])]
    data = RegionDataset(reader, vocabulary_of(), Regions(*arrays), RegionTraining((SIDE, SIDE)), True)
    batch = data.collater([data[0], data[1]])
    assert batch["nsentences"] == 1 and "segment 5 has no pixel" in batch["bad_rows"][0] and "train-00000" in batch["bad_rows"][0]
    strict = RegionDataset(reader, vocabulary_of(), Regions(*arrays), RegionTraining((SIDE, SIDE)), True, on_bad_sample="raise")
    with pytest.raises(CodecError, match="segment 5 has no pixel"):
        strict[1]
