"""Pretraining samples: what each task's source and target hold, determinism, and the collated batch."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ofaseg.data import codec, parquet
from ofaseg.data.pretraining_dataset import PretrainingDataset, PretrainingSymbols, clip_box, location_tokens
from ofaseg.data.pretraining_mixture import TASKS, PretrainingMixture, PretrainingSettingsError
from ofaseg.data.rows import ShardError, place
from ofaseg.data.shards import ShardReader
from ofaseg.tokenizers import TokenizerError
from ofaseg.vocabulary import ClassVocabulary

WORDS = "what does the image describe? region region: which text complete of ? is a red ball grass on".split()
IDS = {word: 4 + k for k, word in enumerate(WORDS)}
MASK, BINS, NUM_BINS = 4 + len(WORDS), 5 + len(WORDS), 12
SYMBOLS = PretrainingSymbols(0, 1, 2, MASK, BINS, NUM_BINS, np.arange(4, 4 + len(WORDS)))
VOCABULARY = ClassVocabulary(("ball", "grass"))
PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
ROW = {
    "image": codec.encode_image(PICTURE),
    "captions": ["a red ball on the grass"],
    "boxes": [{"box": [0.0, 4.0, 4.0, 8.0], "text": "red ball", "class_id": 0}],
}


class Rows(list):
    """A reader of rows that lie in memory."""

    paths = ("rows.tsv",)

    def __getitem__(self, index):
        return dict(super().__getitem__(index))

    def locate(self, index):
        return "rows.tsv", index

    def location(self, index, column=""):
        return place("rows.tsv", index, column)


def encode(text):
    unknown = [word for word in text.split() if word not in IDS]
    if unknown:
        raise TokenizerError(f"the word {unknown[0]!r} is not covered")
    return [IDS[word] for word in text.split()]


def dataset(seed=1, rows=None, side=16, stride=8, options=None, **weights):
    mixture = PretrainingMixture(**({"caption": 0, "box": 0, "ground": 0, "infill": 0, "copy": 0, "crop_side": 8} | weights))
    return PretrainingDataset(Rows(rows or [ROW] * 64), VOCABULARY, encode, SYMBOLS, mixture, seed, side, stride, **(options or {}))


def test_caption_sample():
    sample = dataset(caption=1)[0]
    assert sample["source"].tolist() == [0, *encode("what does the image describe?"), 2]
    assert sample["target"].tolist() == [*encode("a red ball on the grass"), 2]
    assert sample["image"] is not None


def test_box_sample_mirrors_image_and_box_together():
    places = set()
    for k in range(16):
        sample = dataset(box=1)[k]
        mirrored = bool((sample["image"].numpy() == PICTURE[:, ::-1].transpose(2, 0, 1)).all())
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
        original = PICTURE[4:8, 0:4]
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


def strict(**options):
    return dataset(**options, options={"on_bad_sample": "raise"})


def test_settings_out_of_range_say_what_to_do():
    with pytest.raises(PretrainingSettingsError, match="not all zero"):
        dataset()
    for side in (12, 24, 4):
        with pytest.raises(PretrainingSettingsError, match=rf"--crop-side {side} must be a multiple .* \(8 pixels\) .* 16; change it"):
            dataset(crop=1, crop_side=side)
    dataset(caption=1, crop_side=12)  # nothing is cut out


def test_a_cut_out_as_large_as_an_image_is_still_a_cut_out():
    data = dataset(crop=1, crop_side=16)
    batch = data.collater([data[0], data[1]])
    assert batch["net_input"] is None and batch["region_input"]["patch_images"].shape == (2, 3, 16, 16)


def with_box(*corners, text="red ball"):
    return [ROW | {"boxes": [*ROW["boxes"], {"box": list(corners), "text": text, "class_id": 0}]}]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(caption=1, side=32), "row 0, column image: the image is 16x16, .* resize the shards"),
        (dict(caption=1, rows=[ROW | {"image": b"no picture"}]), "row 0, column image: not an image"),
        (dict(box=1, rows=[ROW | {"boxes": []}]), "row 0, column boxes: the row has no boxes; set the weights"),
        (dict(caption=1, rows=[ROW | {"captions": []}]), "row 0, column captions: the row has no caption; add one"),
        (dict(caption=1, rows=[ROW | {"captions": [None, "grass"]}]), "row 0, column captions: caption 0 is not a text .None.; correct it"),
        (dict(infill=1, rows=[ROW | {"captions": ["grass", None]}]), "row 0, column captions: caption 1 is not a text"),
        (dict(box=1, rows=[ROW | {"boxes": [None]}]), "row 0, column boxes: box 0 is not a box with a text .None.; correct it"),
        (dict(box=1, rows=[ROW | {"boxes": [{"box": None, "text": "ball"}]}]), "column boxes: box 0 .* is not four finite numbers"),
        (dict(box=1, rows=[ROW | {"boxes": [ROW["boxes"][0] | {"text": None}]}]), "column boxes: box 0 has no text"),
        (dict(caption=1, rows=[ROW | {"captions": ["a zebra"]}]), "row 0, column captions: the word 'zebra'"),
        (dict(box=1, rows=[ROW | {"boxes": [ROW["boxes"][0] | {"text": "zebra"}]}]), "row 0, column boxes: the word 'zebra'"),
        (dict(box=1, rows=with_box(8, 4, 4, 8)), r"row 0, column boxes: box 1 .* needs x0 < x1 and y0 < y1; correct it"),
        (dict(crop=1, rows=with_box(float("nan"), 4, 8, 8)), "column boxes: box 1 .* is not four finite numbers"),
        (dict(ground=1, rows=with_box(4, 8)), "column boxes: box 1 .* is not four finite numbers"),
        (dict(ground=1, rows=with_box(16, 4, 20, 8)), "column boxes: box 1 .* lies outside the image of 16x16 pixels"),
        (dict(box=1, rows=with_box(4, 4, 8, 8, text=" ")), "column boxes: box 1 has no text; describe it"),
    ],
)
def test_a_bad_row_is_named_and_left_out(options, message, caplog):
    with pytest.raises((ShardError, codec.CodecError), match=f"^rows.tsv, .*{message}"):
        strict(**options)[0]
    data = dataset(**options)
    del data.reader[1:]
    with pytest.raises(ShardError, match="100 rows in a row cannot be read, the last: rows.tsv, row"):
        data.collater([data[0]])
    assert "row 0 is left out: rows.tsv, row 0" in caplog.text


def test_null_entries_of_a_parquet_file_cost_only_their_rows(tmp_path):
    rows = [ROW, ROW | {"captions": [None]}, ROW | {"boxes": [None]}, ROW]
    table = pa.Table.from_pylist([row | {"image": {"bytes": row["image"]}} for row in rows], parquet.schema(["image", "captions", "boxes"]))
    pq.write_table(table, tmp_path / "train.parquet")
    mixture = PretrainingMixture(caption=1, box=0, ground=0, infill=0, copy=0, crop_side=8, substitution=0.5)
    data = PretrainingDataset(ShardReader(str(tmp_path / "train.parquet")), VOCABULARY, encode, SYMBOLS, mixture, 1, 16)
    batch = data.collater([data[k] for k in range(4)])
    assert batch["id"].tolist() == [0, 3]
    places = [f"{tmp_path}/train.parquet, row {k}, column {column}" for k, column in ((1, "captions"), (2, "boxes"))]
    assert [message.split(":")[0] for message in batch["bad_rows"]] == places


def test_a_bad_row_costs_only_itself():
    rows = [ROW, ROW | {"captions": []}, ROW, ROW]
    data = dataset(caption=1, rows=rows)
    batch = data.collater([data[k] for k in range(4)])
    assert batch["id"].tolist() == [0, 2, 3] and batch["nsentences"] == 3
    assert [message.split(":")[0] for message in batch["bad_rows"]] == ["rows.tsv, row 1, column captions"]
    assert data.collater([data[1]])["id"].tolist()[0] in (0, 2, 3), "a training batch that lost all rows takes another readable one"
    evaluation = dataset(caption=1, rows=rows, options={"training": False})
    empty = evaluation.collater([evaluation[1]])
    assert (empty["nsentences"], empty["ntokens"], len(empty["bad_rows"])) == (0, 0, 1)
    assert empty["net_input"] is None and empty["target"].shape == (0, 0)


def test_boxes_are_not_looked_at_when_no_task_reads_them():
    strict(caption=1, rows=with_box(8, 4, 4, 8))[0]


def test_a_box_that_leaves_the_image_is_clipped():
    assert clip_box([-3, 4, 5, 99], 16) == [0, 4, 5, 16] and clip_box([0.5, 1, 15.5, 16], 16) == [0.5, 1, 15.5, 16]
    rows = [ROW | {"boxes": [{"box": [-4.0, 4.0, 4.0, 8.0], "text": "red ball", "class_id": 0}]}] * 16
    clipped, inside = dataset(crop=1, rows=rows), dataset(crop=1, rows=[ROW] * 16)
    assert all(torch.equal(clipped[k]["image"], inside[k]["image"]) for k in range(16)), "the same pixels as of the part inside"
    with pytest.raises(ValueError, match="outside"):
        clip_box([-8, 0, 0, 16], 16)


def test_label_maps_are_mirrored_with_their_images():
    label_map = (PICTURE[..., 0] > 100).astype(np.int32)
    rows = [ROW | {"label_map": codec.encode_label_map(label_map, VOCABULARY)}] * 16
    data = dataset(caption=1, rows=rows, options={"label_maps": True, "training": False})
    batch = data.collater([data[k] for k in range(16)])
    assert torch.equal(batch["label_maps"], (batch["net_input"]["patch_images"][:, 0] > 100).long())
    missing = dataset(caption=1, rows=[ROW | {"label_map": None}], options={"label_maps": True, "on_bad_sample": "raise"})
    with pytest.raises(codec.CodecError, match="rows.tsv, row 0, column label_map: the row has no label map"):
        missing[0]
