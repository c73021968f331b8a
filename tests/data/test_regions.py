"""Regions of a split: which there are per task, the file that keeps them, and the sample of each class."""

import numpy as np
import pytest

from ofaseg.data import regions as module
from ofaseg.data.regions import TASKS, find_regions, sample_regions
from ofaseg.data.shards import ShardError, ShardReader
from tests.toy import write_toy_shards
from tests.toy_freeseg import toy_segments, vocabulary_of, write_segment_shards

ROWS = 6


@pytest.fixture
def reader(tmp_path):
    write_segment_shards(tmp_path, "train", ROWS, seed=3)
    return ShardReader.for_split(str(tmp_path), "train")


def truth():
    """(task, row, value, class) of every region of the fixture's shards."""
    rng, found = np.random.default_rng(3), set()
    for row in range(ROWS):
        label_map, ids, entries = toy_segments(rng, 72, 96)
        rng.integers(-20, 20, (72, 96, 3))  # the photo's noise
        found |= {("semantic", row, int(k), int(k)) for k in np.unique(label_map) if k >= 0}
        kept = [entry for entry in entries if not entry["is_crowd"]]
        found |= {("panoptic", row, entry["id"], entry["class_id"]) for entry in kept}
        found |= {("instance", row, entry["id"], entry["class_id"]) for entry in kept if entry["class_id"] < 2}
    return found


def as_set(regions):
    return {(TASKS[task], int(row), int(value), int(k)) for task, row, value, k in zip(*vars(regions).values())}


def test_regions_are_those_of_the_shards(reader):
    """Crowds are none, stuff is no instance; ordered by task and class; other tasks leave out nothing of theirs."""
    found = find_regions(reader, vocabulary_of(), TASKS)
    assert as_set(found) == truth() and len(found) == len(truth())
    order = list(zip(found.tasks.tolist(), found.classes.tolist()))
    assert order == sorted(order)
    assert as_set(find_regions(reader, vocabulary_of(), ["instance"])) == {entry for entry in truth() if entry[0] == "instance"}


def test_one_search_per_shards(reader, monkeypatch, tmp_path):
    """Kept beside the shards; a damaged file and one of other shards are made again."""
    first = find_regions(reader, vocabulary_of(), TASKS)
    path = tmp_path / "train.segments.npz"
    assert path.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_search", lambda *args: pytest.fail("searched again"))
        assert as_set(find_regions(reader, vocabulary_of(), TASKS)) == as_set(first)
    path.write_bytes(path.read_bytes()[:100])
    assert as_set(find_regions(reader, vocabulary_of(), TASKS)) == as_set(first)
    write_segment_shards(tmp_path, "train", 2, seed=3)
    again = find_regions(ShardReader.for_split(str(tmp_path), "train"), vocabulary_of(), ["panoptic"])
    assert as_set(again) == {entry for entry in truth() if entry[0] == "panoptic" and entry[1] < 2}


def test_samples(reader):
    """Up to so many of each task and class, none twice, the same for a seed; whatever else is drawn changes nothing."""
    found = find_regions(reader, vocabulary_of(), TASKS)
    drawn = sample_regions(found, 2, seed=5)
    assert as_set(drawn) <= as_set(found) and len(as_set(drawn)) == len(drawn)
    sizes = {(t, k): ((found.tasks == t) & (found.classes == k)).sum() for t, k in zip(found.tasks, found.classes)}
    for (task, class_id), size in sizes.items():
        assert ((drawn.tasks == task) & (drawn.classes == class_id)).sum() == min(2, size)
    assert max(sizes.values()) > 2
    assert as_set(sample_regions(found, 2, seed=5)) == as_set(drawn) != as_set(sample_regions(found, 2, seed=6))
    assert as_set(sample_regions(found, 2, seed=5, classes=[1])) == {entry for entry in as_set(drawn) if entry[3] == 1}
    assert as_set(sample_regions(found, 0, seed=5)) == as_set(found)


def test_rows_that_cannot_be_read_do_not_cost_the_others(tmp_path, caplog):
    write_segment_shards(tmp_path, "train", 3, seed=3)
    path = next(tmp_path.glob("train-*.tsv"))
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"class_id": 2', '"class_id": 7').replace('"class_id":2', '"class_id":7')
    path.write_text("".join(lines))
    found = find_regions(ShardReader.for_split(str(tmp_path), "train"), vocabulary_of(), ["panoptic"])
    assert set(found.rows.tolist()) == {0, 2} and "1 of 3 rows are left out" in caplog.text and "class_id 7" in caplog.text


def test_shards_without_segments(tmp_path):
    write_toy_shards(tmp_path, "train", 2)
    reader = ShardReader.for_split(str(tmp_path), "train")
    with pytest.raises(ShardError, match="no column segment_map and no column segments, .* --tasks semantic"):
        find_regions(reader, vocabulary_of(), TASKS)
    assert len(find_regions(reader, vocabulary_of(), ["semantic"])) > 2
