"""Pretraining samples: what each task's source and target hold, determinism, and the collated batch."""

import numpy as np
import pytest
import torch

from ofaseg.data.pretraining_dataset import (
    TASKS,
    PretrainingDataError,
    PretrainingDataset,
    PretrainingMixture,
    PretrainingSymbols,
    location_tokens,
)

WORDS = "what does the image describe? region region: which text complete of ? is a red ball grass on".split()
IDS = {word: 4 + k for k, word in enumerate(WORDS)}
MASK, BINS, NUM_BINS = 4 + len(WORDS), 5 + len(WORDS), 12
SYMBOLS = PretrainingSymbols(0, 1, 2, MASK, BINS, NUM_BINS, np.arange(4, 4 + len(WORDS)))
ROW = {
    "id": "r",
    "image": np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3),
    "captions": ["a red ball on the grass"],
    "boxes": [{"box": [0.0, 4.0, 4.0, 8.0], "text": "red ball", "class_id": 0}],
}


def encode(text):
    return [IDS[word] for word in text.split()]


def dataset(seed=1, rows=None, side=16, stride=8, **weights):
    mixture = PretrainingMixture(**({"caption": 0, "box": 0, "ground": 0, "infill": 0, "copy": 0, "crop_side": 8} | weights))
    return PretrainingDataset(rows or [ROW] * 64, lambda image: image, encode, SYMBOLS, mixture, seed, side, stride)


def test_caption_sample():
    sample = dataset(caption=1)[0]
    assert sample["source"].tolist() == [0, *encode("what does the image describe?"), 2]
    assert sample["target"].tolist() == [*encode("a red ball on the grass"), 2]
    assert sample["image"] is not None


def test_box_sample_mirrors_image_and_box_together():
    places = set()
    for k in range(16):
        sample = dataset(box=1)[k]
        mirrored = bool((sample["image"].numpy() == ROW["image"][:, ::-1].transpose(2, 0, 1)).all())
        expected = location_tokens([12, 4, 16, 8] if mirrored else [0, 4, 4, 8], 16, 16, BINS, NUM_BINS)
        assert sample["source"].tolist()[-5:-1] == expected
        assert sample["target"].tolist() == [*encode("red ball"), 2]
        places.add(mirrored)
    assert places == {True, False}


def test_a_region_sample_asks_for_several_boxes_in_random_order():
    boxes = [{"box": [4.0 * k, 0.0, 4.0 * k + 4, 4.0], "text": text, "class_id": k} for k, text in enumerate(("ball", "grass", "red ball"))]
    words = {tuple(location_tokens(b["box"], 16, 16, BINS, NUM_BINS)): encode(b["text"]) for b in boxes}
    data = dataset(box=1, flip=0.0, rows=[ROW | {"boxes": boxes}] * 32)
    lengths, orders = set(), set()
    for k in range(32):
        sample = data[k]
        regions = sample["source"].tolist()[1 + len(encode("what does the region describe?")) : -1]
        places = [tuple(regions[i + 1 : i + 5]) for i in range(0, len(regions), 5)]
        assert sample["target"].tolist() == [token for place in places for token in words[place]] + [2]
        lengths.add(len(places))
        orders.add(tuple(places))
    assert lengths == {1, 2, 3} and len(orders) > 6


def test_a_cut_out_shows_its_box_on_grey():
    data = dataset(crop=1)
    for k in range(16):
        sample = data[k]
        cut = sample["image"].numpy().transpose(1, 2, 0)
        assert cut.shape == (8, 8, 3) and sample["target"].tolist() == [*encode("red ball"), 2]
        region = cut[(cut != 127).any(-1)].tolist()
        original = ROW["image"][4:8, 0:4]
        assert region in (original.reshape(-1, 3).tolist(), original[:, ::-1].reshape(-1, 3).tolist())


def test_words_stand_in_for_patches_of_the_smallest_box_alone():
    boxes = [{"box": [0.0, 0.0, 16.0, 16.0], "text": "grass", "class_id": 1}, {"box": [0.0, 0.0, 8.0, 8.0], "text": "ball", "class_id": 0}]
    data = dataset(caption=1, flip=0.0, substitution=1.0, rows=[ROW | {"boxes": boxes}] * 64, stride=4)
    words = torch.stack([data[k]["patch_words"] for k in range(64)])
    assert words.shape == (64, 4, 4)
    assert set(words[:, :2, :2].flatten().tolist()) == {-1, IDS["ball"]}
    assert set(words[:, 2:].flatten().tolist()) == {-1, IDS["grass"]}
    batch = data.collater([data[0], data[1]])
    assert torch.equal(batch["net_input_words"], words[:2])


def test_ground_sample_is_the_box_sample_turned_around():
    sample = dataset(ground=1, flip=0.0)[0]
    assert sample["target"].tolist() == [*location_tokens([0, 4, 4, 8], 16, 16, BINS, NUM_BINS), 2]


def test_infill_hides_words_and_half_of_the_images():
    samples = [dataset(infill=1, mask_ratio=0.5)[k] for k in range(64)]
    hidden = [sample["image"] is None for sample in samples]
    assert 16 < sum(hidden) < 48
    masked = sum(int((sample["source"] == MASK).sum()) for sample in samples) / (6 * 64)
    assert masked == pytest.approx(0.5, abs=0.1)
    assert all(sample["target"].tolist() == [*encode("a red ball on the grass"), 2] for sample in samples)


def test_copy_never_shows_the_image_and_repeats_the_words():
    for k in range(20):
        sample = dataset(copy=1)[k]
        words = sample["target"].tolist()[:-1]
        assert sample["image"] is None and 4 <= len(words) <= 15
        assert sample["source"].tolist() == [0, *encode("what is the complete text of"), *words, IDS["?"], 2]


def test_samples_depend_on_seed_epoch_and_index_alone():
    mixed = dict(caption=1, box=1, infill=1, copy=1)
    first, again, other = dataset(**mixed), dataset(**mixed), dataset(seed=2, **mixed)
    same = [torch.equal(first[k]["source"], again[k]["source"]) for k in range(30)]
    assert all(same)
    assert any(not torch.equal(first[k]["source"], other[k]["source"]) for k in range(30))
    again.set_epoch(2)
    assert any(not torch.equal(first[k]["source"], again[k]["source"]) for k in range(30))
    assert first.ordered_indices().tolist() != again.ordered_indices().tolist()


def test_collated_batch_shifts_targets_and_pads_right():
    data = dataset(caption=1, copy=1)
    batch = data.collater([data[k] for k in range(8)])
    target = batch["target"]
    seeing, blind = batch["net_input"], batch["text_input"]
    prev = torch.cat([seeing["prev_output_tokens"], blind["prev_output_tokens"]])
    assert target.shape == prev.shape and batch["ntokens"] == int((target != 1).sum())
    for row in range(8):
        n = int((target[row] != 1).sum())
        assert prev[row, 0] == 0 and torch.equal(prev[row, 1:n], target[row, : n - 1]) and (prev[row, n:] == 1).all()
    assert seeing["patch_images"].dtype == torch.uint8 and seeing["patch_images"].shape == (len(seeing["src_tokens"]), 3, 16, 16)
    assert "patch_images" not in blind and len(seeing["src_tokens"]) + len(blind["src_tokens"]) == 8
    assert set(batch["tasks"].tolist()) <= set(range(len(TASKS)))


def test_a_batch_of_one_kind_has_no_second_part():
    seeing, blind = dataset(caption=1), dataset(copy=1)
    assert seeing.collater([seeing[0]])["text_input"] is None
    assert blind.collater([blind[0]])["net_input"] is None


def test_batches_keep_every_row():
    chunks = dataset(caption=1).batch_by_size(np.arange(64), max_sentences=10)
    assert sum(len(chunk) for chunk in chunks) == 64


def test_errors_say_what_to_do():
    with pytest.raises(PretrainingDataError, match="not all zero"):
        dataset()
    with pytest.raises(PretrainingDataError, match="resize the shards"):
        dataset(caption=1, side=32)[0]
    with pytest.raises(PretrainingDataError, match="no boxes; set the weights"):
        dataset(box=1, rows=[ROW | {"boxes": []}])[0]
    with pytest.raises(PretrainingDataError, match="no caption"):
        dataset(caption=1, rows=[ROW | {"captions": []}])[0]
