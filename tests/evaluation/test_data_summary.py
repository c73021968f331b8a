"""What is read of the files beside the shards."""

import json

import pytest

from ofaseg.evaluation.data_summary import SplitSummary, read_data_summary
from tests.toy import write_toy_shards


def test_splits_and_rows_come_from_the_folder(tmp_path):
    for split, count in (("train", 5), ("val", 2)):
        write_toy_shards(tmp_path, split, count)
    summary = read_data_summary(tmp_path)
    assert [(split.name, split.rows) for split in summary.splits] == [("train", 5), ("val", 2)]
    assert summary.class_names == ["red", "green", "blue"] and summary.source == "toy"
    assert not any(split.shares or split.sizes for split in summary.splits)
    assert read_data_summary(tmp_path / "absent") is None


def test_sizes_shares_and_skipped_samples_come_from_the_summary_of_a_split(tmp_path):
    write_toy_shards(tmp_path, "val", 2)
    classes = [{"id": k, "name": name, "pixels": 10 * k, "share": k / 3, "images": k} for k, name in enumerate(("red", "green", "blue"))]
    sizes = {"height": {"min": 32, "median": 32.0, "max": 32}, "width": {"min": 40, "median": 44.0, "max": 48}}
    summary = {"split": "val", "rows": 2, "classes": classes, "sizes": sizes, "skipped": [{"sample": "x", "reason": "broken"}]}
    (tmp_path / "summary_val.json").write_text(json.dumps(summary))
    (split,) = read_data_summary(tmp_path).splits
    assert split == SplitSummary("val", 2, "32 x 40..48", 1, [0, 1 / 3, 2 / 3], [0, 1, 2])


@pytest.mark.parametrize(
    "name, text",
    [("vocabulary.json", "{"), ("vocabulary.json", "[]"), *(("summary_val.json", text) for text in ("{", "[]", "{}"))],
)
def test_a_damaged_file_is_named(tmp_path, name, text):
    (tmp_path / "vocabulary.json").write_text(json.dumps({"names": ["a"], "num_rows": {"val": 1}}))
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        read_data_summary(tmp_path)
