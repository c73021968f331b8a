"""Which photos become examples, and their list on disk."""

import math

import pytest

from ofaseg.evaluation.examples import ChosenPhoto, choose, read_index, write_index

SCORES = {3: 0.5, 0: 0.9, 8: 0.1, 5: 0.5, 7: math.nan}


def rows_of(photos, group):
    return [photo.row for photo in photos if group in photo.groups]


def test_best_and_worst_by_score_and_random_by_rows_alone():
    photos = choose(SCORES, 2)
    assert rows_of(photos, "best") == [0, 3] and sorted(rows_of(photos, "worst")) == [5, 8]
    assert {photo.row: photo.miou for photo in photos}[8] == 0.1 and 7 not in {photo.row for photo in photos}
    other = choose({row: 1 - score for row, score in SCORES.items()}, 2)
    assert set(rows_of(other, "random")) == set(rows_of(photos, "random")) and rows_of(other, "best")[0] == 8
    many = {row: 0.5 for row in range(100)}
    assert rows_of(choose(many, 5, seed=1), "random") != rows_of(choose(many, 5, seed=2), "random")


def test_few_photos_are_chosen_once():
    photos = choose({4: 0.2, 2: 0.4}, 3)
    assert len(photos) == 2 and all(photo.groups == ["best", "worst", "random"] for photo in photos)
    assert choose({}, 3) == [] and choose({1: 0.5}, 0) == []


def test_the_list_reads_back(tmp_path):
    photos = [ChosenPhoto(4, 0.25, ["best", "random"], "a"), ChosenPhoto(1, 0.125, ["worst"], "b")]
    write_index(tmp_path, photos)
    assert read_index(tmp_path) == photos


def test_folders_without_a_list_are_read_too(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").touch()
    (tmp_path / "no photo").mkdir()
    assert [photo.name for photo in read_index(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"examples": [{"name": "a"}]}', '{"examples": [{"name": "../a", "row": 1, "mIoU": 0.5, "groups": []}]}']
)
def test_a_damaged_list_is_named(tmp_path, text):
    (tmp_path / "examples.json").write_text(text)
    with pytest.raises(ValueError, match="examples.json.*ofaseg evaluate"):
        read_index(tmp_path)
