"""Image-text samples and batches: draws, order, batches of one size, bad rows; and through fairseq's iterator and data workers."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from fairseq.data.iterators import EpochBatchIterator

from ofaseg.data import codec, image_text_dataset, row_dataset
from ofaseg.data.image_text_dataset import ImageTextDataset
from ofaseg.data.image_text_source import ImageTextSource
from ofaseg.data.image_text_sources import JoinedImageText
from ofaseg.data.image_text_transforms import ImageTextEvaluation
from ofaseg.data.row_dataset import BadRow, TooManyBadRows
from ofaseg.data.rows import ShardError


class Photos(ImageTextSource):
    """Photo i is of colour `first` + i and has the captions "<first + i> <k>"; those in `bad` cannot be read."""

    def __init__(self, count, captions=3, first=0, bad=()):
        self.count, self.captions, self.first, self.bad = count, captions, first, bad

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i in self.bad:
            raise ShardError.at("photos.csv", "broken", i)
        number = self.first + i
        pixels = np.zeros((6, 9, 3), np.uint8)
        pixels[..., 0], pixels[0, :, 1], pixels[:, 0, 2] = number, 70, 90
        captions = tuple(f"{number} {k}" for k in range(self.captions))
        image = codec.encode_image(pixels, "png") if i % 50 != 49 else b"no image"
        return {"image": image, "captions": captions, "image_id": number, "caption_ids": ()}

    def location(self, i, column=""):
        return f"photos.csv, row {i}, column {column}"


def tokenize(texts):
    """(ids, mask) of 3 columns: the numbers of a text, then padding."""
    ids = torch.tensor([[*map(int, text.split()), 0][:3] for text in texts], dtype=torch.long)
    return ids, torch.tensor([[1, 1, 0]] * len(texts))


def keep(sample, rng):
    return sample


def dim(sample, rng):
    return sample | {"image": sample["image"] // np.uint8(1 + rng.integers(4))}


def dataset(source, training=True, transform=keep, **kwargs):
    return ImageTextDataset(source, tokenize, transform, training, **kwargs)


def test_a_caption_belongs_to_its_photo_through_the_collater():
    data = dataset(Photos(7), training=True)
    batch = data.collater([data[i] for i in (3, 1, 6)])
    assert batch["id"].tolist() == [3, 1, 6] == batch["image_id"] and batch["nsentences"] == batch["ntokens"] == 3
    inputs = batch["net_input"]
    assert set(inputs) == {"image", "input_ids", "attention_mask"} and not batch["bad_rows"]
    assert inputs["image"].shape == (3, 3, 6, 9) and inputs["image"].dtype == torch.uint8
    assert torch.equal(inputs["image"][:, 0, 3, 3].long(), inputs["input_ids"][:, 0])
    assert (inputs["image"][:, 1, 0] == 70).all() and (inputs["image"][:, 2, :, 0] == 90).all()  # rows and columns, red green blue
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 3) and inputs["attention_mask"].tolist() == [[1, 1, 0]] * 3


def test_draws_follow_seed_epoch_and_index():
    data = dataset(Photos(40), transform=dim, seed=5)
    first = [data[i] for i in range(40)]
    again = pickle.loads(pickle.dumps(dataset(Photos(40), transform=dim, seed=5)))
    assert all(torch.equal(a["image"], again[i]["image"]) and a["captions"] == again[i]["captions"] for i, a in enumerate(first))
    chosen = Counter(sample["captions"][0].split()[1] for sample in first)
    assert set(chosen) == {"0", "1", "2"} and min(chosen.values()) > 5  # each caption of a photo has its turn
    data.set_epoch(2)
    second = [data[i] for i in range(40)]
    assert [s["captions"] for s in first] != [s["captions"] for s in second]
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(first, second))


def test_captions_are_augmented_in_training_only():
    def change(caption, rng):
        return f"{caption.split()[0]} {100 + int(rng.integers(50))}"

    data = dataset(Photos(5), augment_caption=change)
    values = [int(data[i]["input_ids"][0, 1]) for i in range(5)]
    assert all(100 <= value < 150 for value in values) and len(set(values)) > 1
    assert [int(data[i]["input_ids"][0, 1]) for i in range(5)] == values
    assert dataset(Photos(5), training=False, augment_caption=change)[2]["captions"] == ("2 0", "2 1", "2 2")


def test_evaluation_keeps_every_photo_and_caption_in_order():
    data = dataset(Photos(5, captions=2, bad=(1,)), training=False, transform=ImageTextEvaluation(8, 4))
    batches = data.batch_by_size(data.ordered_indices(), max_sentences=3)
    assert batches == [[0, 1, 2], [3, 4]]
    batch = data.collater([data[i] for i in batches[0]])
    assert batch["id"].tolist() == batch["image_id"] == [0, 2] and batch["bad_rows"] == ["photos.csv, row 1: broken"]
    assert batch["net_input"]["image"].shape == (2, 3, 4, 4) and batch["net_input"]["input_ids"].tolist() == [[0, 0, 0], [2, 0, 0]]
    assert batch["captions"] == [("0 0", "0 1"), ("2 0", "2 1")] and batch["caption_image_id"] == [0, 0, 2, 2]
    assert batch["caption_input"]["input_ids"].tolist() == [[0, 0, 0], [0, 1, 0], [2, 0, 0], [2, 1, 0]]
    assert batch["caption_input"]["attention_mask"].shape == (4, 3)
    order = batch["caption_order"].tolist() + data.collater([data[i] for i in batches[1]])["caption_order"].tolist()
    assert order == sorted(order) and len(set(order)) == 8
    nothing = data.collater([data[1]])
    assert nothing["nsentences"] == 0 and nothing["bad_rows"] and nothing["net_input"] == {}


@pytest.mark.parametrize("count, chunk, world, expected", [(50, 8, 2, [8] * 6), (50, 8, 1, [8] * 6), (10, 8, 3, [3] * 3), (3, 8, 1, [3])])
def test_every_rank_gets_full_batches(count, chunk, world, expected):
    data = dataset(Photos(count), world_size=world)
    batches = data.batch_by_size(data.ordered_indices(), max_sentences=chunk)
    assert [len(batch) for batch in batches] == expected and len(batches) % world == 0
    rows = [i for batch in batches for i in batch]
    assert len(set(rows)) == len(rows) and rows != sorted(rows)


def test_fewer_photos_than_processes_are_told():
    with pytest.raises(ShardError, match="2 photos to train on, 3 processes"):
        dataset(Photos(2), world_size=3).batch_by_size(range(2), max_sentences=4)


def test_a_bad_row_is_replaced_so_that_batches_keep_their_size():
    data = dataset(Photos(49, bad=tuple(range(5, 20))))
    batch = data.collater([data[i] for i in (1, 5, 6, 30)])
    assert batch["nsentences"] == 4 and batch["net_input"]["image"].shape[0] == 4
    assert len(batch["bad_rows"]) == 2 and not set(batch["id"].tolist()) & set(range(5, 20))
    assert batch["id"].tolist()[0] == 1 and batch["id"].tolist()[3] == 30
    again = data.collater([data[i] for i in (1, 5, 6, 30)])
    assert torch.equal(again["id"], batch["id"])
    assert data.collater([]) == {}
    assert isinstance(dataset(Photos(50))[49], BadRow)  # bytes that are no image
    with pytest.raises(codec.CodecError, match="photos.csv, row 49, column image: not an image"):
        dataset(Photos(50), on_bad_sample="raise")[49]


def test_row_after_row_that_cannot_be_read_stops(monkeypatch):
    monkeypatch.setattr(row_dataset, "MAX_BAD_IN_A_ROW", 5)
    data = dataset(Photos(30, bad=tuple(range(30))))
    with pytest.raises(TooManyBadRows, match="5 rows in a row cannot be read, the last: photos.csv, row .*: broken. Check that the images"):
        data.collater([data[0]])


def test_more_captions_than_can_be_numbered(monkeypatch):
    monkeypatch.setattr(image_text_dataset, "MAX_CAPTIONS", 2)
    with pytest.raises(ShardError, match="photos.csv, row 1, column captions: 3 captions of one photo, at most 2 can be"):
        dataset(Photos(5), on_bad_sample="raise")[1]


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="batch_order is 'sequential'; choose from shuffle, debias"):
        dataset(Photos(3), batch_order="sequential")
    with pytest.raises(ValueError, match="on_bad_sample is 'ignore'"):
        dataset(Photos(3), on_bad_sample="ignore")


# ---- several data sets ----


def joined(*sizes):
    starts = np.cumsum([0, *sizes])
    return JoinedImageText([Photos(size, first=int(start)) for size, start in zip(sizes, starts)])


def test_shuffling_mixes_the_sets():
    data = dataset(joined(40, 40))
    batches = data.batch_by_size(data.ordered_indices(), max_sentences=8)
    assert sum(len({i // 40 for i in batch}) == 2 for batch in batches) >= 8
    assert data[45]["captions"][0].startswith("45 ")


def steps_of(data, chunk, world):
    batches = data.batch_by_size(data.ordered_indices(), max_sentences=chunk)
    return [batches[k : k + world] for k in range(0, len(batches), world)]


def test_debias_takes_each_step_from_one_set():
    world, chunk, sizes = 2, 4, (160, 40)
    data = dataset(joined(*sizes), batch_order="debias", world_size=world)
    drawn = Counter()
    for epoch in range(1, 41):
        data.set_epoch(epoch)
        steps = steps_of(data, chunk, world)
        assert len(steps) == 160 // 8 + 40 // 8 and all(len(batch) == chunk for step in steps for batch in step)
        owners = [{int(i >= 160) for batch in step for i in batch} for step in steps]
        assert all(len(owner) == 1 for owner in owners)  # the same on all ranks
        drawn.update(owner.pop() for owner in owners)
        first_round = [i for step in steps for batch in step for i in batch if i < 160][:160]
        assert len(set(first_round)) == len(first_round)  # a set starts again only when all of it was taken
    rounds = 0
    for epoch in range(1, 101):  # a set of two steps that runs out is shuffled again, so the steps differ
        data = dataset(joined(160, 16), batch_order="debias", world_size=world)
        data.set_epoch(epoch)
        small = [frozenset(i for batch in step for i in batch) for step in steps_of(data, chunk, world) if step[0][0] >= 160]
        for k in range(0, len(small) - 3, 2):
            assert small[k] | small[k + 1] == small[k + 2] | small[k + 3] == set(range(160, 176))
            assert small[k] not in small[k + 2 : k + 4]
            rounds += 1
    assert rounds > 3
    assert drawn[1] / sum(drawn.values()) == pytest.approx(40 / 200, abs=0.04)
    assert steps_of(data, chunk, world) == steps_of(data, chunk, world)
    with pytest.raises(ShardError, match="set 2 of 2 has 5 rows, a step of all ranks takes 8"):
        steps_of(dataset(joined(160, 5), batch_order="debias", world_size=2), 4, 2)


def test_debias_survives_fairseqs_shuffling_of_groups():
    data = dataset(joined(48, 16), batch_order="debias", world_size=2)
    assert data.grouped_shuffling and not dataset(joined(48, 16)).grouped_shuffling
    batches = data.batch_by_size(data.ordered_indices(), max_sentences=4)
    grouped = {"num_shards": 2, "grouped_shuffling": data.grouped_shuffling}
    iterators = [EpochBatchIterator(data, data.collater, batches, shard_id=rank, **grouped) for rank in range(2)]
    ranks = [iterator.next_epoch_itr(shuffle=True) for iterator in iterators]
    steps = 0
    for parts in zip(*ranks):
        owners = [set((part["id"] >= 48).tolist()) for part in parts]
        assert owners[0] == owners[1] and len(owners[0]) == 1
        assert not set(parts[0]["id"].tolist()) & set(parts[1]["id"].tolist())
        steps += 1
    assert steps == len(batches) // 2 == 8


def test_data_workers_give_the_same_batches():
    def ids(workers):
        data = dataset(Photos(24), transform=dim)
        batches = data.batch_by_size(data.ordered_indices(), max_sentences=6)
        found = []
        for batch in torch.utils.data.DataLoader(data, batch_sampler=batches, collate_fn=data.collater, num_workers=workers):
            inputs = batch["net_input"]
            found.append((batch["id"].tolist(), inputs["input_ids"].tolist(), int(inputs["image"].sum())))
        return found

    assert ids(2) == ids(0)
