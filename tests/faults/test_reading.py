"""Every fault of the corpus through the readers: one typed error with file, row, column, cause and cure, or the right pixels."""

import os
import re

import numpy as np
import pytest

from ofaseg.checkpoints import CheckpointError, load_state
from ofaseg.data import codec
from ofaseg.data.segmentation_dataset import BadRow, SegmentationDataset
from ofaseg.data.shards import ShardError, ShardReader, load_vocabulary
from ofaseg.vocabulary import VocabularyError, parse_class_names, resolve_vocabulary
from tests.faults.corpus import FAULTS, NUM_ROWS, ROW, VOCABULARY, clean_row, make, of_group

TYPED = (ShardError, codec.CodecError, VocabularyError, CheckpointError)
IN_ROWS = [(kind, format) for kind in of_group("row") for format in kind.formats] + [(kind, "tsv") for kind in of_group("line")]
SLOW = pytest.mark.slow
SAME_LABELS = ("map_with_palette", "map_16_bit", "base64_url_safe")


def cases(pairs):
    return [pytest.param(*pair, id="-".join([pair[0].name, *pair[1:]]), marks=[SLOW] if pair[0].slow else []) for pair in pairs]


def dataset(reader, vocabulary=VOCABULARY, **options) -> SegmentationDataset:
    return SegmentationDataset(reader, vocabulary, lambda sample, rng: sample, training=False, **options)


def read_everything(root) -> int:
    """Reads a split as training does; returns the number of rows."""
    vocabulary = resolve_vocabulary("", load_vocabulary(root))
    data = dataset(ShardReader.for_split(root, "train"), vocabulary, on_bad_sample="raise")
    for i in range(len(data)):
        data.reader[i]
        data[i]
    return len(data)


def check_message(kind, message: str, file: str) -> None:
    missing = [words for words in kind.error if words not in message]
    assert not missing, f"{missing} not in: {message}"
    assert file in message
    assert re.search(r"(; |\. |, or )[\w`]", message), f"no cure in: {message}"


@pytest.mark.parametrize("kind, format", cases([case for case in IN_ROWS if case[0].error]))
def test_a_bad_row_gives_one_error_and_costs_only_itself(kind, format, tmp_path):
    make(kind, tmp_path, format)
    reader = ShardReader.for_split(tmp_path, "train")
    with pytest.raises(TYPED) as caught:
        dataset(reader, on_bad_sample="raise")[ROW]
        reader[ROW]
    check_message(kind, str(caught.value), f"train.{format}, row {ROW}")
    if kind.code not in ("size_mismatch", "bad_row"):  # both files, or all columns, are at fault
        assert f"column {kind.column}" in str(caught.value)
    data = dataset(reader)
    others = [data[i] for i in range(NUM_ROWS) if i != ROW]
    assert len(data.collater(others)["id"]) == NUM_ROWS - 1
    assert all(reader[i]["id"] == f"sample {i}" for i in range(NUM_ROWS) if i != ROW)


@pytest.mark.parametrize("kind, format", cases([case for case in IN_ROWS if case[0].error and case[0].column in ("image", "label_map")]))
def test_training_leaves_a_bad_row_out(kind, format, tmp_path):
    make(kind, tmp_path, format)
    bad = dataset(ShardReader.for_split(tmp_path, "train"))[ROW]
    assert isinstance(bad, BadRow) and f"row {ROW}" in bad.message


@pytest.mark.parametrize("kind, format", cases([case for case in IN_ROWS if not case[0].error]))
def test_a_harmless_row_is_read(kind, format, tmp_path):
    make(kind, tmp_path, format)
    reader = ShardReader.for_split(tmp_path, "train")
    sample = dataset(reader, on_bad_sample="raise")[ROW]
    assert sample["image"].shape == (3, *sample["label_map"].shape)
    assert int(sample["label_map"].max()) < len(VOCABULARY)
    assert set(reader[ROW]) == set(reader.columns)


@pytest.mark.parametrize("kind, format", cases([case for case in IN_ROWS if case[0].name in SAME_LABELS]))
def test_other_ways_of_writing_give_the_same_labels(kind, format, tmp_path):
    make(kind, tmp_path, format)
    found = dataset(ShardReader.for_split(tmp_path, "train"))[ROW]["label_map"].numpy()
    np.testing.assert_array_equal(found, codec.decode_label_map(clean_row(ROW)["label_map"], VOCABULARY))


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in of_group("shards") if kind.error])
def test_broken_shards_give_one_error(kind, tmp_path):
    make(kind, tmp_path)
    with pytest.raises(TYPED) as caught:
        read_everything(tmp_path)
    place = f", row {kind.row}" if kind.row is not None else ""
    if kind.code != "no_vocabulary":  # what is missing has no path
        assert str(tmp_path) in str(caught.value)
    check_message(kind, str(caught.value), f"{kind.file}{place}" if kind.file else "")


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in of_group("shards") if not kind.error])
def test_doubtful_shards_are_read(kind, tmp_path):
    make(kind, tmp_path)
    assert read_everything(tmp_path) == NUM_ROWS


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in of_group("path") if kind.error])
def test_broken_files_give_one_error(kind, tmp_path):
    path = make(kind, tmp_path)
    if kind.name == "shard_without_permission" and os.access(path / "train.tsv", os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(TYPED) as caught:
        if path.suffix in (".pt", ".safetensors"):
            load_state(path)
        elif path.suffix == ".txt":
            parse_class_names(str(path))
        else:
            ShardReader.for_split(path, "train")
    check_message(kind, str(caught.value), kind.file)


def test_the_corpus_is_large_and_its_kinds_differ():
    of_group("row")
    assert len(FAULTS) >= 130 and len({kind.name for kind in FAULTS}) == len(FAULTS)
    assert len({kind.code for kind in FAULTS}) >= 35
