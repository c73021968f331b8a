"""What is read of the files beside the shards."""

import json

import pytest

from ofaseg.evaluation.data_summary import read_data_summary
from tests.toy import write_toy_shards


def test_splits_and_rows_come_from_the_folder(tmp_path):
    for split, count in (("train", 5), ("val", 2)):
        write_toy_shards(tmp_path, split, count)
    summary = read_data_summary(tmp_path)
    assert [(split.name, split.rows) for split in summary.splits] == [("train", 5), ("val", 2)]
    assert summary.class_names == ["red", "green", "blue"] and summary.source == "toy"
    assert not any(split.pixels or split.sizes for split in summary.splits)
    assert read_data_summary(tmp_path / "absent") is None


@pytest.mark.parametrize("name", ["vocabulary.json", "summary_val.json"])
@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_is_named(tmp_path, name, text):
    (tmp_path / "vocabulary.json").write_text(json.dumps({"names": ["a"], "num_rows": {"val": 1}}))
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        read_data_summary(tmp_path)
