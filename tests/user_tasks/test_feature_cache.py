"""Kept features are those of the photo, and the tower is asked for each photo once."""

import numpy as np
import pytest
import torch

from tests.models.one_layer import one_layer
from tests.toy import NAMES, write_toy_shards
from tests.toy_fusioner import make_model, make_task
from user_tasks.feature_cache import FeatureCache

pytestmark = pytest.mark.usefixtures("one_thread")


def photos(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 6), dtype=np.uint8))


def encode(images):
    """Distinguishes photos, rows and columns."""
    return images.float().flatten(2).transpose(1, 2) / 255


def test_each_photo_is_computed_once():
    cache, images = FeatureCache(10), photos(3)
    batch = images[[0, 1, 0, 2]]
    assert torch.equal(cache.tokens(batch, encode), encode(batch)) and cache.computed == 3 == len(cache)
    assert torch.equal(cache.tokens(images.flip(0), None), encode(images.flip(0))), "from memory alone"
    changed = images.clone()
    changed[1, 2, 3, 5] += 1
    assert torch.equal(cache.tokens(changed, encode), encode(changed)) and cache.computed == 4
    assert not torch.equal(cache.tokens(images.transpose(2, 3), encode), cache.tokens(images, encode))


def test_the_limit_bounds_memory():
    cache, images = FeatureCache(2), photos(4)
    for count in (4, 6):
        assert torch.equal(cache.tokens(images, encode), encode(images)) and len(cache) == 2 and cache.computed == count
    none = FeatureCache(0)
    assert torch.equal(none.tokens(images, encode), encode(images)) and len(none) == 0


@torch.no_grad()
def test_validation_with_kept_features_is_the_same(tmp_path):
    write_toy_shards(tmp_path, "val", 4)
    with one_layer():
        task = make_task(tmp_path, NAMES, data=str(tmp_path), cache_features=3)
        model = make_model(task)
    data = task.pair_dataset("val", training=False)
    batch = data.collater([data[k] for k in range(len(data))])
    plain = model.predict(**batch["net_input"]).class_logits
    for _ in range(2):
        torch.testing.assert_close(task.pair_logits(model, batch), plain, atol=1e-5, rtol=1e-5)
    assert len(set(batch["row_ids"].tolist())) == 4 and task.features.computed == 4 + 1, "one photo was over the limit"


def test_training_keeps_features_of_photos_that_do_not_change_only(tmp_path):
    write_toy_shards(tmp_path, "train", 4)
    with one_layer():
        for still in (False, True):
            task = make_task(tmp_path, NAMES, data=str(tmp_path), cache_features=9, no_photo_augmentation=still)
            model = make_model(task)
            data = task.pair_dataset("train", training=True)
            batch = data.collater([data[k] for k in range(4)])
            inputs = task.training_inputs(model, batch)["net_input"]
            assert ("tokens" in inputs) == still
            torch.testing.assert_close(model(**inputs).class_logits, model(**batch["net_input"]).class_logits, atol=1e-5, rtol=1e-5)
