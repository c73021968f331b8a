"""The confusion matrix as a file, and its largest errors."""

import numpy as np
import pytest

from ofaseg.evaluation.confusion import Confusion, read_matrix, row_shares, top_confusions, write_matrix

MATRIX = np.array([[6, 2, 0], [9, 1, 0], [0, 0, 0]])


def test_the_file_reads_back(tmp_path):
    write_matrix(tmp_path / "confusion.npy", MATRIX)
    assert (read_matrix(tmp_path / "confusion.npy", 3) == MATRIX).all()


@pytest.mark.parametrize("content", [np.eye(2), np.eye(3), -MATRIX, np.array([{"a": 1}], dtype=object)])
def test_another_matrix_is_refused_and_nothing_unpickled(tmp_path, content):
    np.save(tmp_path / "confusion.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match="confusion.npy.*(evaluate)"):
        read_matrix(tmp_path / "confusion.npy", 3)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "confusion.npy").touch()
    with pytest.raises(ValueError, match="not a confusion matrix"):
        read_matrix(tmp_path / "confusion.npy", 3)


def test_shares_are_of_the_label_and_absent_labels_have_none():
    assert row_shares(MATRIX).tolist() == [[0.75, 0.25, 0], [0.9, 0.1, 0], [0, 0, 0]]


def test_the_largest_errors_come_first():
    assert top_confusions(MATRIX) == [Confusion(1, 0, 9, 0.9), Confusion(0, 1, 2, 0.25)]
    assert top_confusions(MATRIX, 1) == [Confusion(1, 0, 9, 0.9)]
    assert top_confusions(np.diag([3, 4])) == []
