import pickle
from functools import partial

import numpy as np
import pytest
import torch

from ofaseg.data import codec, row_dataset, transforms
from ofaseg.data.segmentation_dataset import BadRow, PlainBatches, SegmentationDataset, TooManyBadRows
from ofaseg.data.seq2seq_dataset import ArtificialImageDataset, Seq2SeqSegmentationDataset
from ofaseg.data.shards import ShardError, ShardReader
from ofaseg.data.synthetic import ArtificialImageSampler
from ofaseg.vocabulary import IGNORE_INDEX
from tests.toy import CLASS_COLOURS, write_toy_shards


def evaluation_transform(sample, rng):
    return transforms.resize_short_side({"image": sample["image"]}, 32, 128)


def keep(sample, rng):
    return sample


def dataset(root, split="val", training=False, transform=keep, cls=SegmentationDataset, vocabulary=None, **kwargs):
    return cls(ShardReader.for_split(str(root), split), vocabulary, transform, training=training, **kwargs)


def test_batches_drop_nothing_and_keep_order():
    class Five(PlainBatches):
        pass

    batches = Five().batch_by_size(np.arange(11), max_sentences=4, required_batch_size_multiple=8)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert Five().batch_by_size(np.arange(2)) == [[0], [1]]


def test_photos_of_one_size_share_a_batch_in_evaluation(tmp_path):
    vocabulary = write_toy_shards(tmp_path, "val", 7, sizes=((32, 48), (48, 32)))
    def size_key(height, width):
        return transforms.short_side_size(height, width, 32, 128)

    data = dataset(tmp_path, vocabulary=vocabulary, transform=evaluation_transform, batch_size_key=size_key)
    batches = data.batch_by_size(data.ordered_indices(), max_sentences=3)
    data.reader.image_size = None  # the next validation must not read the headers again
    assert data.batch_by_size(data.ordered_indices(), max_sentences=3) == batches
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    for batch in batches:
        collated = data.collater([data[i] for i in batch])
        assert collated["net_input"]["image"].shape[0] == len(batch)
        assert [tuple(label.shape) for label in collated["native_label_maps"]] == collated["native_sizes"]


def test_a_label_belongs_to_its_pixels_through_shards_and_collater(tmp_path):
    """Fails when labels are remapped, axes are swapped or colours are reordered on the way."""
    vocabulary = write_toy_shards(tmp_path, "train", 4, sizes=((30, 44),))
    data = dataset(tmp_path, "train", training=True, vocabulary=vocabulary)
    batch = data.collater([data[i] for i in range(4)])
    assert batch["net_input"]["image"].shape == (4, 3, 30, 44) and batch["target"].shape == (4, 30, 44)
    colours = batch["net_input"]["image"].permute(0, 2, 3, 1).long()
    nearest = (colours[..., None, :] - torch.from_numpy(CLASS_COLOURS).long()).abs().sum(-1).argmin(-1)
    labelled = batch["target"] != IGNORE_INDEX
    assert torch.equal(nearest[labelled], batch["target"][labelled])
    assert not labelled[:, :, :2].any() and labelled[:, :, 2:].all()


def test_training_order_and_random_state_follow_the_epoch(tmp_path):
    vocabulary = write_toy_shards(tmp_path, "train", 20)

    def random_flip(sample, rng):
        return transforms.random_flip(sample, rng)

    data = dataset(tmp_path, "train", training=True, vocabulary=vocabulary, transform=random_flip, seed=3)
    first = [data[i]["image"] for i in range(20)]
    order = data.ordered_indices().tolist()
    assert sorted(order) == list(range(20)) and order != list(range(20))
    assert all(torch.equal(a, data[i]["image"]) for i, a in enumerate(first))
    data.set_epoch(2)
    assert any(not torch.equal(a, data[i]["image"]) for i, a in enumerate(first))
    assert data.ordered_indices().tolist() != order


def break_row(root, split, index):
    """Replaces the image of a TSV row by base64 that is no picture."""
    path = next(root.glob(f"{split}*.tsv"))
    lines = path.read_text().splitlines(keepends=True)
    fields = lines[index].split("\t")
    lines[index] = "\t".join([codec.b64encode(b"not a picture").decode(), *fields[1:]])
    path.write_text("".join(lines))


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_two_workers_give_the_same_batches_as_none(tmp_path, format):
    """The state of a row depends on (seed, epoch, row) alone; workers decode with one thread and stack into shared memory."""
    vocabulary = write_toy_shards(tmp_path, "train", 12, file_format=format)

    def batches(workers):
        transform = partial(transforms.random_scale_crop_flip, size=24)
        data = dataset(tmp_path, "train", training=True, vocabulary=vocabulary, transform=transform)
        order = data.batch_by_size(data.ordered_indices(), max_sentences=5)
        return list(torch.utils.data.DataLoader(data, batch_sampler=order, num_workers=workers, collate_fn=data.collater))

    alone, shared = batches(0), batches(2)
    assert [batch["id"].tolist() for batch in alone] == [batch["id"].tolist() for batch in shared] and len(alone) == 3
    for first, second in zip(alone, shared):
        image, target = first["net_input"]["image"], first["target"]
        assert image.dtype == torch.uint8 and image.shape[1:] == (3, 24, 24) and target.dtype == torch.int16
        assert torch.equal(image, second["net_input"]["image"]) and torch.equal(target, second["target"])
        assert image.is_contiguous() and second["net_input"]["image"].is_shared() and second["target"].is_shared()


def test_one_bad_row_never_costs_the_others(tmp_path, caplog):
    vocabulary = write_toy_shards(tmp_path, "train", 4)
    break_row(tmp_path, "train", 1)
    data = dataset(tmp_path, "train", training=True, vocabulary=vocabulary)
    batch = data.collater([data[i] for i in range(4)])
    assert batch["id"].tolist() == [0, 2, 3]
    assert "train-00000-of-00001.tsv, row 1, column image" in batch["bad_rows"][0] and "row 1" in caplog.text
    alone = data.collater([data[1]])
    assert alone["id"].tolist()[0] in (0, 2, 3), "a training batch that lost all rows takes another readable one"
    assert alone["id"].tolist() == data.collater([data[1]])["id"].tolist(), "which one is a function of the epoch and the row"
    evaluation = dataset(tmp_path, "train", vocabulary=vocabulary)
    empty = evaluation.collater([evaluation[1]])
    assert empty["nsentences"] == 0 and len(empty["bad_rows"]) == 1
    with pytest.raises((ShardError, codec.CodecError), match="row 1"):
        dataset(tmp_path, "train", vocabulary=vocabulary, on_bad_sample="raise")[1]


def test_bad_rows_without_end_stop_the_reading(tmp_path, monkeypatch):
    """Good rows in between start the count again; the message says what to run."""
    monkeypatch.setattr(row_dataset, "MAX_BAD_IN_A_ROW", 3)
    vocabulary = write_toy_shards(tmp_path, "train", 8)
    for index in (1, 2, 4, 5, 6):
        break_row(tmp_path, "train", index)
    data = dataset(tmp_path, "train", training=True, vocabulary=vocabulary)
    assert [isinstance(data[i], BadRow) for i in range(6)] == [False, True, True, False, True, True]
    with pytest.raises(TooManyBadRows, match=f"3 rows in a row cannot be read, the last: .*row 6, column image.*ofaseg doctor {tmp_path}"):
        data[6]


def test_a_block_of_bad_rows_does_not_stop_shuffled_training(tmp_path, monkeypatch):
    """A damaged stretch of a file is longer than the limit, but readable rows are drawn between its rows."""
    monkeypatch.setattr(row_dataset, "MAX_BAD_IN_A_ROW", 10)
    vocabulary = write_toy_shards(tmp_path, "train", 60)
    for index in range(20, 34):
        break_row(tmp_path, "train", index)
    data = dataset(tmp_path, "train", training=True, vocabulary=vocabulary)
    batches = [data.collater([data[int(index)]]) for index in data.ordered_indices()]
    assert sum(len(batch["bad_rows"]) for batch in batches) == 14
    assert all(batch["nsentences"] == 1 and batch["id"].item() not in range(20, 34) for batch in batches)


def test_an_unknown_way_with_bad_rows_is_refused(tmp_path):
    vocabulary = write_toy_shards(tmp_path, "train", 1)
    with pytest.raises(ValueError, match="on_bad_sample is 'ignore'; choose from skip, raise"):
        dataset(tmp_path, "train", vocabulary=vocabulary, on_bad_sample="ignore")


def test_a_label_map_of_another_size_is_named(tmp_path):
    vocabulary = write_toy_shards(tmp_path, "val", 1)
    other = codec.encode_label_map(np.zeros((48, 32), np.int32), vocabulary)
    path = next(tmp_path.glob("val*.tsv"))
    fields = path.read_text().rstrip("\n").split("\t")
    path.write_text("\t".join([fields[0], codec.b64encode(other).decode(), *fields[2:]]) + "\n")
    with pytest.raises(codec.CodecError, match="the label map is 48x32 .* the image 32x48"):
        dataset(tmp_path, vocabulary=vocabulary, on_bad_sample="raise")[0]


def test_seq2seq_batches_share_one_source(tmp_path):
    vocabulary = write_toy_shards(tmp_path, "val", 2)
    source = torch.tensor([0, 7, 8, 2])
    data = dataset(tmp_path, vocabulary=vocabulary, cls=Seq2SeqSegmentationDataset, source_tokens=source)
    batch = pickle.loads(pickle.dumps(data)).collater([data[0], data[1]])
    assert set(batch["net_input"]) == {"patch_images", "src_tokens"}
    assert batch["net_input"]["src_tokens"].tolist() == [source.tolist()] * 2


def test_artificial_batches_open_no_file():
    sampler = ArtificialImageSampler(3, (4, 4), (16, 16), 1, 4, seed=1)
    data = ArtificialImageDataset(sampler, 10, torch.tensor([0, 5, 2]))
    batch = data.collater([data[i] for i in range(2)])
    assert batch["net_input"]["class_maps"].shape == (2, 4, 4) and batch["target"].shape == (2, 16, 16)
    again = ArtificialImageDataset(sampler, 10, torch.tensor([0, 5, 2]))
    again.set_epoch(1)
    assert torch.equal(again[1]["target"], data[1]["target"])
    data.set_epoch(2)
    assert not torch.equal(again[1]["target"], data[1]["target"])
