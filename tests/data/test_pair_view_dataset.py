"""The pair view: masks that belong to their pixels, drawn classes, resuming, and rows that cannot be read."""

import pickle

import numpy as np
import pytest
import torch
from fairseq.data.iterators import EpochBatchIterator

from ofaseg.data.class_pairs import PairChoice, PairIndex, choose_pairs
from ofaseg.data.few_shot_transforms import FewShotEvaluation, FewShotTraining
from ofaseg.data.folds import ClassSplit
from ofaseg.data.pair_view_dataset import PairViewDataset, binary_masks
from ofaseg.data.present_classes import present_classes
from ofaseg.data.row_dataset import BadRow
from ofaseg.data.shards import ShardError, ShardReader
from ofaseg.vocabulary import IGNORE_INDEX
from tests.data.test_segmentation_dataset import break_row
from tests.toy import CLASS_COLOURS, write_toy_shards

SPLIT = ClassSplit(base=(0, 1), novel=(2,))


def keep(sample, rng):
    return dict(sample)


def dataset(root, split="train", num=6, training=True, transform=keep, sizes=((30, 44),), broken=(), sides=SPLIT, **more):
    vocabulary = write_toy_shards(root, split, num, sizes=sizes)
    reader = ShardReader.for_split(str(root), split)
    present = present_classes(reader, vocabulary)
    pairs = choose_pairs(present, vocabulary, sides, PairChoice(), training)
    for row in broken:
        break_row(root, split, row)
    reader = ShardReader.for_split(str(root), split)
    return PairViewDataset(reader, vocabulary, pairs, transform, training, present=present, **more)


def test_masks_of_label_maps():
    label_map = np.array([[0, 1, 2], [IGNORE_INDEX, -2, 1]], np.int16)
    assert binary_masks(label_map, [1, 0, 7]).tolist() == [[[0, 1, 0], [-1, 0, 1]], [[1, 0, 0], [-1, 0, 0]], [[0, 0, 0], [-1, 0, 0]]]


def test_a_mask_belongs_to_its_pixels_and_its_class(tmp_path):
    """Fails when classes are remapped, axes are swapped or pairs are shuffled on the way."""
    data = dataset(tmp_path, training=False, sides=ClassSplit((0,), (1, 2)), split="val")
    batch = data.collater([data[i] for i in range(len(data))])
    assert batch["net_input"]["image"].shape == (len(data), 3, 30, 44) and batch["net_input"]["image"].dtype == torch.uint8
    assert batch["net_input"]["class_ids"].shape == (len(data), 1) and batch["target"].shape == (len(data), 1, 30, 44)
    assert batch["target"].dtype == torch.int8 and batch["nsentences"] == len(data)
    colours = batch["net_input"]["image"].permute(0, 2, 3, 1).long()
    nearest = (colours[..., None, :] - torch.from_numpy(CLASS_COLOURS).long()).abs().sum(-1).argmin(-1)
    expected = (nearest == batch["net_input"]["class_ids"][:, :, None]).to(torch.int8)[:, None]
    expected[..., :2] = IGNORE_INDEX
    assert torch.equal(batch["target"], expected) and set(batch["net_input"]["class_ids"].flatten().tolist()) == {1, 2}
    assert [tuple(target.shape) for target in batch["native_targets"]] == [(1, 30, 44)] * len(data)
    ids = [data.present.ids[row] for row in batch["row_ids"]]
    pairs = list(zip(ids, batch["net_input"]["class_ids"][:, 0].tolist()))
    assert pairs == sorted(pairs) and len(set(pairs)) == len(pairs)


def test_training_shows_base_classes_only(tmp_path):
    data = dataset(tmp_path, num_absent=1, classes=SPLIT.base)
    classes = {k for i in range(len(data)) for k in data[i]["class_ids"].tolist()}
    assert classes == {0, 1} and len(data) > 6


def five_classes(present_rows):
    """A dataset without shards whose rows show the given classes of 0..4."""
    from tests.data.test_class_pairs import present_of

    present = present_of({f"row{k}": classes for k, classes in enumerate(present_rows)})
    pairs = PairIndex(np.arange(len(present_rows)), np.array([classes[0] for classes in present_rows]))
    return lambda **more: PairViewDataset(None, None, pairs, keep, True, present=present, classes=range(5), **more)


def test_drawn_classes_are_present_and_absent_as_asked_for():
    make = five_classes([[3, 0, 4], [1], [0, 1, 2, 3, 4]])
    data = make(num_present=2, num_absent=2)
    seen = set()
    for draw in range(60):
        rng = np.random.default_rng(draw)
        first, other, *absent = data._sample_classes(0, 3, rng)
        assert first == 3 and other in (0, 4) and sorted(absent) == [1, 2]
        seen.add((other, *absent))
        alone = data._sample_classes(1, 1, rng)
        assert alone[0] == 1 and len(set(alone)) == 4, "absent classes take the places of present ones"
        every = data._sample_classes(2, 0, rng)
        assert every[0] == 0 and len(set(every)) == 4, "and the reverse"
    assert len(seen) == 4
    with pytest.raises(ValueError, match="6 classes per sample are to be drawn from 5"):
        make(num_present=3, num_absent=3)
    with pytest.raises(ValueError, match="0 present and 1 absent classes per sample"):
        make(num_present=0, num_absent=1)


def test_samples_are_functions_of_seed_epoch_and_pair(tmp_path):
    data = dataset(tmp_path, transform=FewShotTraining(24), num_present=1, num_absent=1, classes=(0, 1, 2), num=8)
    first = [data[i] for i in range(len(data))]
    copy = pickle.loads(pickle.dumps(data))
    for i, sample in enumerate(first):
        for name in ("image", "target", "class_ids"):
            assert torch.equal(copy[i][name], sample[name]) and sample["target"].shape == (2, 24, 24)
    order = data.ordered_indices().tolist()
    copy.set_epoch(2)
    assert any(not torch.equal(copy[i]["image"], first[i]["image"]) for i in range(len(data)))
    assert copy.ordered_indices().tolist() != order and sorted(order) == list(range(len(data)))


def test_a_run_resumed_in_the_middle_of_an_epoch_sees_the_same_batches(tmp_path):
    data = dataset(tmp_path, transform=FewShotTraining(16), num_absent=1, classes=(0, 1, 2), num=9)

    def batches():
        return data.batch_by_size(data.ordered_indices(), max_sentences=3)

    def iterator():
        return EpochBatchIterator(data, data.collater, lambda dataset, epoch: batches(), seed=1)

    straight = iterator()
    epoch = straight.next_epoch_itr(shuffle=True)
    whole = list(epoch)
    again = iterator()
    part = again.next_epoch_itr(shuffle=True)
    for _ in range(2):
        next(part)
    state = again.state_dict()
    resumed = iterator()
    resumed.load_state_dict(state)
    rest = list(resumed.next_epoch_itr(shuffle=True))
    assert len(rest) == len(whole) - 2 > 0
    for expected, batch in zip(whole[2:], rest):
        assert batch["id"].tolist() == expected["id"].tolist() and torch.equal(batch["target"], expected["target"])
        assert all(torch.equal(batch["net_input"][name], expected["net_input"][name]) for name in ("image", "class_ids"))


def test_no_pair_is_dropped_and_photos_of_one_size_share_a_batch(tmp_path):
    evaluation = FewShotEvaluation(None)
    sizes = ((30, 44), (44, 30), (12, 9))
    data = dataset(tmp_path, "val", 9, False, evaluation, sizes, batch_size_key=evaluation.output_size, sides=ClassSplit((), (0, 1, 2)))
    batches = data.batch_by_size(data.ordered_indices(), max_sentences=4)
    assert sorted(i for batch in batches for i in batch) == list(range(len(data))) and max(map(len, batches)) == 4
    for batch in batches:
        collated = data.collater([data[i] for i in batch])
        assert {collated["target"].shape[-2:]} == set(collated["native_sizes"])
        assert all(torch.equal(a, b) for a, b in zip(collated["target"], collated["native_targets"]))


def test_photos_smaller_than_the_window(tmp_path):
    data = dataset(tmp_path, sizes=((12, 9), (3, 40)), transform=FewShotTraining(48))
    batch = data.collater([data[i] for i in range(len(data))])
    assert batch["net_input"]["image"].shape[2:] == (48, 48) and batch["target"].shape[2:] == (48, 48)


def test_a_mask_may_be_empty_after_cropping(tmp_path):
    """It stays in the batch: pixels of other classes are labelled."""
    data = dataset(tmp_path, transform=lambda sample, rng: {name: value[:10, :11] for name, value in sample.items()})
    targets = [data[i]["target"] for i in range(len(data))]
    assert any(not (target == 1).any() for target in targets) and all((target >= 0).any() for target in targets)


def test_one_bad_row_never_costs_the_others(tmp_path):
    data = dataset(tmp_path, broken=(1,))
    bad = [i for i in range(len(data)) if data.pairs.rows[i] == 1]
    samples = [data[i] for i in range(len(data))]
    assert bad and [i for i, sample in enumerate(samples) if isinstance(sample, BadRow)] == bad
    batch = data.collater(samples)
    assert len(batch["bad_rows"]) == len(bad) and batch["nsentences"] == len(data) - len(bad)
    assert "train-00000-of-00001.tsv, row 1, column image" in batch["bad_rows"][0] and 1 not in batch["row_ids"].tolist()
    alone = data.collater([samples[bad[0]]])
    assert alone["nsentences"] == 1 and alone["row_ids"].item() != 1, "a training batch that lost all its pairs takes another one"
    data.training = False
    assert data.collater([samples[bad[0]]])["nsentences"] == 0
    data.on_bad_sample = "raise"
    with pytest.raises((ShardError, ValueError), match="row 1, column image"):
        data[bad[0]]


def test_a_rank_without_batches_gets_an_empty_one(tmp_path):
    assert dataset(tmp_path).collater([]) == {}
