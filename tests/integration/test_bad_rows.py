"""Training on shards of which one row in a hundred is broken, each in another way, on one and two processes."""

import pytest

from tests.faults.corpus import change_rows, clean_row, of_group, write_unchecked
from tests.integration.forked import shared_server
from tests.integration.test_training import arguments
from tests.toy import NAMES, PROMPT_WORDS, write_words

pytestmark = pytest.mark.slow

NUM_ROWS = 300
BAD = {41: "image_truncated_jpeg", 160: "map_value_outside", 299: "line_lacks_a_column"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """300 rows in which `BAD` says what is wrong, a clean validation split with one bad row, a word dictionary."""
    root = tmp_path_factory.mktemp("world")
    kinds = {kind.name: kind for kind in of_group("row", "line")}
    write_unchecked(root / "data", [clean_row(1000 + k) for k in range(7)], split="val")
    write_unchecked(root / "data", [clean_row(k) for k in range(NUM_ROWS)])
    change_rows(root / "data" / "train.tsv", {row: kinds[name] for row, name in BAD.items()})
    change_rows(root / "data" / "val.tsv", {2: kinds["map_jpeg"]})
    write_words(root / "bpe", [*NAMES, *PROMPT_WORDS])
    return root


def train(world, save_dir, *extra, **options):
    flags = ("--supervised", "--no-photo-augmentation", "--batch-size-valid", 1, "--log-interval", 1)
    return shared_server().train(arguments(world, save_dir, *flags, *extra), **options)


@pytest.mark.parametrize("nproc", [1, 2])
def test_training_finishes_and_counts_every_bad_row(world, tmp_path, nproc):
    batch = 20 // nproc
    outcome = train(world, tmp_path, "--batch-size", batch, "--distributed-world-size", nproc, nproc=nproc).check()
    assert len(outcome.logs("train_inner")) == 2 * NUM_ROWS // 20, "as many steps as without bad rows"
    epochs = outcome.logs("train")
    assert [row["train_bad_rows"] for row in epochs] == [3, 3]
    assert [row["train_bad_rows_total"] for row in epochs] == [3, 6]
    assert [row["val_bad_rows"] for row in outcome.logs("val")] == [1, 1]
    text = "".join(outcome.texts)
    assert all(f"train.tsv, row {row}" in text for row in BAD)


def test_the_count_goes_on_in_a_resumed_run(world, tmp_path):
    flags = ("--batch-size", 20, "--disable-validation")
    train(world, tmp_path, *flags, "--max-epoch", 1).check()
    outcome = train(world, tmp_path, *flags, "--max-epoch", 2).check()
    assert [row["train_bad_rows_total"] for row in outcome.logs("train")] == [6]


@pytest.mark.parametrize("extra", [("--disable-validation",), ("--validate-interval-updates", 1)], ids=["plain", "validated in between"])
def test_a_rank_that_repeats_a_batch_counts_its_bad_rows_once(tmp_path, world, extra):
    """Five rows for two processes: the second runs out of batches and repeats one without gradient, be its first row bad or not."""
    kinds = {kind.name: kind for kind in of_group("row")}
    data = tmp_path / "data"
    write_unchecked(data, [clean_row(k) for k in range(5)])
    write_unchecked(data, [clean_row(1000 + k) for k in range(4)], split="val")
    change_rows(data / "train.tsv", dict.fromkeys((1, 3), kinds["image_html_page"]))
    change_rows(data / "val.tsv", {0: kinds["image_html_page"]})
    flags = ("--batch-size", 1, "--batch-size-valid", 1, "--distributed-world-size", 2, "--max-epoch", 1)
    shared = arguments(world, tmp_path / "out", "--supervised", "--no-photo-augmentation", *flags, *extra)[1:]
    outcome = shared_server().train([data, *shared], nproc=2).check()
    assert outcome.logs("train")[-1]["train_bad_rows"] == 2 and len(outcome.logs("train_inner")) == 3


def test_image_free_ranks_may_have_uneven_batches(world, tmp_path):
    flags = ("--epoch-size", 5, "--batch-size", 1, "--distributed-world-size", 2, "--disable-validation", "--max-epoch", 1)
    outcome = shared_server().train(arguments(world, tmp_path, *flags), nproc=2).check()
    assert len(outcome.logs("train_inner")) == 3


def test_raise_stops_at_the_first_bad_row(world, tmp_path):
    outcome = train(world, tmp_path, "--on-bad-sample", "raise", "--batch-size", 20, "--disable-validation")
    assert outcome.returncode != 0 and "train.tsv, row " in outcome.text


def test_shards_of_nothing_but_bad_rows_stop_the_run(world, tmp_path):
    kinds = {kind.name: kind for kind in of_group("row")}
    data = tmp_path / "data"
    write_unchecked(data, [clean_row(k) for k in range(120)])
    change_rows(data / "train.tsv", dict.fromkeys(range(120), kinds["map_in_colours"]))
    shared = arguments(world, tmp_path / "out", "--supervised", "--no-photo-augmentation", "--batch-size", 20, "--disable-validation")[1:]
    outcome = shared_server().train([data, *shared])
    assert outcome.returncode != 0
    assert "100 rows in a row cannot be read, the last:" in outcome.text and f"`ofaseg doctor {data}` lists" in outcome.text
