"""The confusion matrix of an evaluation as a file, and what is confused most."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofaseg.atomic import atomic_write

FILE = "confusion.npy"
"""Beside scores.json: (K, K) int64 pixels, rows are labels, columns predictions."""

MOST_CLASSES = 2000
"""Above this the file is not written: it would be larger than everything else together."""


@dataclass
class Confusion:
    """Pixels of one class that were given to another one.

    Attributes:
        label, prediction: class ids.
        pixels: how many.
        share: of the label's pixels, 0..1.
    """

    label: int
    prediction: int
    pixels: int
    share: float


def write_matrix(path, matrix: np.ndarray) -> None:
    """Writes a (K, K) integer matrix atomically, in numpy's plain format."""
    with atomic_write(path) as file:
        np.save(file, np.asarray(matrix, dtype=np.int64), allow_pickle=False)


def read_matrix(path, num_classes: int) -> np.ndarray:
    """(K, K) int64 of `write_matrix`.

    Raises:
        ValueError: damaged, not of that shape, or holds negative counts.
    """
    path = Path(path)
    try:
        matrix = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a confusion matrix ({error}); write it with `ofaseg evaluate ... --out`") from error
    if matrix.shape != (num_classes, num_classes) or matrix.dtype.kind not in "iu" or matrix.min(initial=0) < 0:
        problem = f"{matrix.shape} {matrix.dtype}, expected counts of {num_classes} x {num_classes} classes"
        raise ValueError(f"{path}: {problem}; it belongs to another scores.json: evaluate again")
    return matrix.astype(np.int64)


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """(K, K) shares of each label's pixels, rows sum to 1; rows of absent labels are 0."""
    totals = matrix.sum(1, keepdims=True)
    return matrix / np.maximum(totals, 1)


def top_confusions(matrix: np.ndarray, most: int = 20) -> list[Confusion]:
    """The entries off the diagonal with the most pixels, largest first."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    shares = row_shares(matrix)
    order = np.argsort(-errors, axis=None, kind="stable")[:most]
    places = [divmod(int(k), len(matrix)) for k in order if errors.flat[k]]
    return [Confusion(label, prediction, int(errors[label, prediction]), float(shares[label, prediction])) for label, prediction in places]
