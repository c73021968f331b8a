"""Masks as run lengths, numbers or COCO's text, both ways; in numpy alone.

Runs go down the columns, one column after the other, and begin with unset pixels (a first run of 0 where the first pixel is set).
As text, each run is written in groups of 5 bits, lowest first, with a sign; from the fourth run on the difference to the last but
one is written instead. A character is its group + 48, and + 32 where more groups follow.
"""

from typing import Sequence

import numpy as np

_BITS, _MORE, _SIGN, _FIRST_CHARACTER = 5, 32, 16, 48
_MOST_GROUPS = 7
"""Groups that a number below 2**32 with sign needs."""


class RunLengthError(ValueError):
    """Run lengths that stand for no mask of the size given."""


def runs_of_mask(mask: np.ndarray) -> np.ndarray:
    """(R,) int64 run lengths of an (H, W) boolean mask."""
    pixels = np.ascontiguousarray(np.asarray(mask, dtype=bool).T).ravel()
    if not pixels.size:
        return np.zeros(0, dtype=np.int64)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = np.concatenate([[0], changes]) if not pixels[0] else np.concatenate([[0, 0], changes])
    return np.diff(starts, append=pixels.size).astype(np.int64)


def mask_of_runs(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """(height, width) bool mask. Raises RunLengthError for negative runs, or when they do not add up to the pixels."""
    runs = np.asarray(runs, dtype=np.int64)
    if runs.ndim != 1 or runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise RunLengthError(f"run lengths add up to {runs.sum()} pixels, not to {height} x {width}; correct the record")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def text_of_runs(runs: Sequence[int]) -> str:
    """COCO's text of run lengths."""
    rest = np.array(runs, dtype=np.int64)
    rest[3:] -= np.asarray(runs, dtype=np.int64)[1:-2]
    characters = np.full((len(rest), _MOST_GROUPS), -1, dtype=np.int64)
    open_runs = np.ones(len(rest), dtype=bool)
    for k in range(_MOST_GROUPS):
        group = rest & 31
        rest >>= _BITS
        more = np.where(group & _SIGN, rest != -1, rest != 0)
        characters[open_runs, k] = (group + _FIRST_CHARACTER + _MORE * more)[open_runs]
        open_runs &= more
    return characters[characters >= 0].astype(np.uint8).tobytes().decode("ascii")


def runs_of_text(text: str) -> np.ndarray:
    """(R,) int64 run lengths of COCO's text.

    Raises:
        RunLengthError: a character that does not occur in such a text, a number that is too long, or one that is cut off.
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    except UnicodeEncodeError as error:
        raise RunLengthError(f"{text[error.start]!r} in the text of run lengths; correct the record") from error
    if not len(codes):
        return np.zeros(0, dtype=np.int64)
    if codes.min() < 0 or codes.max() > 63:
        wrong = text[int(np.flatnonzero((codes < 0) | (codes > 63))[0])]
        raise RunLengthError(f"{wrong!r} in the text of run lengths; correct the record")
    ends = np.flatnonzero(codes & _MORE == 0)
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise RunLengthError("the text of run lengths ends in the middle of a number; correct the record")
    starts = np.concatenate([[0], ends[:-1] + 1])
    groups = ends - starts + 1
    if groups.max() > _MOST_GROUPS:
        raise RunLengthError("the text of run lengths holds a number that is too long; correct the record")
    position = np.arange(len(codes)) - np.repeat(starts, groups)
    runs = np.add.reduceat((codes & 31) << _BITS * position, starts)
    runs -= np.where(codes[ends] & _SIGN, np.left_shift(1, _BITS * groups), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def text_of_mask(mask: np.ndarray) -> str:
    """COCO's text of an (H, W) boolean mask."""
    return text_of_runs(runs_of_mask(mask))


def mask_of_text(text: str, height: int, width: int) -> np.ndarray:
    """(height, width) bool mask of COCO's text. Raises RunLengthError as `runs_of_text` and `mask_of_runs`."""
    return mask_of_runs(runs_of_text(text), height, width)
