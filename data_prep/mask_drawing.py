"""Masks as COCO's JSON files write them: polygons, and run lengths as numbers or as text."""

import numpy as np

from data_prep.source import SourceError

_LARGEST_COORDINATE = 1e5
_CHARACTER_BITS = 5
"""Run lengths as text: 5 bits a character, which is their value + 32 where more follow, + 48 as ASCII."""


def draw_mask(segmentation, height: int, width: int, where: str) -> np.ndarray:
    """(height, width) bool mask of a "segmentation" entry.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...] in pixels, whose union is drawn as COCO's own tools do (needs
            pycocotools); or {"size": [height, width], "counts": run lengths down the columns, unset pixels first}, the counts as
            a list of numbers or as COCO's text.
        where: the file and record, for messages.

    Raises:
        SourceError: another form, another size, or polygons without pycocotools.
    """
    if isinstance(segmentation, list):
        return _draw_polygons(segmentation, height, width, where)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str):
        raise SourceError(f"{where}: no polygons and no run lengths; expected a list, or an object with size and counts")
    if segmentation.get("size") != [height, width]:
        raise SourceError(f"{where}: run lengths of size {segmentation.get('size')} in a photo of [{height}, {width}]; correct the record")
    counts = segmentation["counts"]
    runs = np.asarray(_counts_of_text(counts, where) if isinstance(counts, str) else _checked_counts(counts, where), dtype=np.int64)
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise SourceError(f"{where}: run lengths add up to {runs.sum()} pixels, not to {height} x {width}; correct the record")
    is_set = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_set, runs).reshape(width, height).T


def _checked_counts(counts: list, where: str) -> list[int]:
    if not all(isinstance(count, int) and 0 <= count < 2**32 for count in counts):
        raise SourceError(f"{where}: run lengths that are no numbers of pixels; correct the record")
    return counts


def _counts_of_text(text: str, where: str) -> list[int]:
    """Run lengths of COCO's text: little-endian groups of 5 bits with sign; from the fourth on the difference to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise SourceError(f"{where}: {character!r} in the text of run lengths; correct the record")
        value |= (code & 31) << shift
        shift += _CHARACTER_BITS
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
        if not 0 <= counts[-1] < 2**32:
            raise SourceError(f"{where}: the text of run lengths holds {counts[-1]}; correct the record")
    if shift:
        raise SourceError(f"{where}: the text of run lengths ends in the middle of a number; correct the record")
    return counts


def _draw_polygons(polygons: list, height: int, width: int, where: str) -> np.ndarray:
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_coordinate, polygon)):
            raise SourceError(f"{where}: a polygon is not a list [x0, y0, x1, y1, x2, y2, ...] of pixels; correct the record")
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    try:
        from pycocotools import mask
    except ImportError as error:
        raise SourceError(f"{where}: polygons are drawn by pycocotools, which is not installed: pip install pycocotools") from error
    return mask.decode(mask.merge(mask.frPyObjects(polygons, height, width))).astype(bool)


def _is_coordinate(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_COORDINATE
