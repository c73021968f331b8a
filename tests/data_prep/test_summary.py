"""Counts over rows against a plain count, and what is said about them."""

import numpy as np
import pytest

from data_prep.statistics import Statistics
from data_prep.summary import describe, read_summary, summarize, write_summary
from ofaseg.vocabulary import ClassVocabulary

VOCABULARY = ClassVocabulary(names=("sky", "road", "tree", "car"))


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    return [rng.integers(-1, 3, (5 + i % 3, 8)) for i in range(9)]


def counted(maps):
    statistics = Statistics(4)
    for label_map in maps:
        statistics.add(label_map.shape, label_map)
    return statistics


def test_counts(maps):
    statistics = counted(maps)
    for k in range(4):
        assert statistics.pixels[k] == sum(int((m == k).sum()) for m in maps)
        assert statistics.images[k] == sum(bool((m == k).any()) for m in maps)
    assert statistics.pixels[4] == sum(int((m == -1).sum()) for m in maps)
    assert statistics.sizes == {(5, 8): 3, (6, 8): 3, (7, 8): 3} and statistics.rows == 9


def test_counts_of_parts_add_up(maps):
    whole, parts = counted(maps), counted(maps[:4])
    parts.merge(Statistics.from_json(counted(maps[4:]).to_json()))
    parts.add((100, 200), None)
    whole.add((100, 200), None)
    assert parts.to_json() == whole.to_json() and whole.unlabelled_rows == 1


def test_summary(maps, tmp_path):
    statistics = counted(maps)
    statistics.add((50, 20), None)
    skipped = [{"sample": "a.jpg", "reason": f"{k}.jpg: damaged"} for k in range(7)]
    summary = summarize("train", statistics, VOCABULARY, skipped, [1000, 2000])
    assert (summary["rows"], summary["files"], summary["bytes"], summary["unlabelled_rows"]) == (10, 2, 3000, 1)
    assert summary["sizes"]["height"] == {"min": 5, "median": 6.0, "max": 50} and summary["sizes"]["width"]["min"] == 8
    assert summary["sizes"]["most_common"][0] == {"height": 5, "width": 8, "images": 3} and summary["sizes"]["distinct"] == 4
    assert sum(entry["share"] for entry in summary["classes"]) == pytest.approx(1, abs=1e-5)
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path, "train") == summary and read_summary(tmp_path, "val") is None
    text = describe(summary)
    assert "train: 10 rows in 2 files, 0.0 MB; photos height 5..50 (median 6), width 8..20 (median 8)" in text
    assert "train: 1 rows have no label map" in text and "train: no pixel of car" in text
    assert "7 bad samples skipped, listed in summary_train.json" in text and "4.jpg" in text and "5.jpg" not in text


def test_no_labelled_pixel_at_all_is_said():
    statistics = Statistics(4)
    statistics.add((3, 4), np.full((3, 4), -1))
    text = describe(summarize("val", statistics, VOCABULARY, [], [10]))
    assert "photos 3x4 (height x width)" in text and "no pixel has a class; check the label values" in text


def test_without_labels():
    statistics = Statistics(0)
    statistics.add((3, 4), None)
    assert describe(summarize("val", statistics, None, [], [10])).splitlines()[1:] == ["val: 1 rows have no label map"]
