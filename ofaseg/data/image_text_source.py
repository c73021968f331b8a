"""What a source of photos with captions is, and how rows of one photo are brought together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from ofaseg.data.rows import ShardError


@dataclass(frozen=True)
class ImageTextColumns:
    """The columns of tables and lists that a user named; empty ones are found by type and name.

    Attributes:
        image: the photo, or in a list its file name.
        captions: one, or several that all hold captions.
        image_id: equal in rows of one photo.
    """

    image: str = ""
    captions: tuple[str, ...] = ()
    image_id: str = ""

    @classmethod
    def from_options(cls, options) -> "ImageTextColumns":
        """Of the options image_column, caption_columns (a text, commas between names) and image_id_column."""
        captions = tuple(name.strip() for name in options.caption_columns.split(",") if name.strip())
        return cls(options.image_column.strip(), captions, options.image_id_column.strip())


USUAL_COLUMNS = ImageTextColumns()


class ImageTextSource:
    """Photos with captions, by number: `source[i]` is a dict of

    - image: the bytes of an image file,
    - captions: tuple of at least one text,
    - image_id: int or text, the same for the same photo,
    - caption_ids: tuple of the captions' ids as the data set has them, () when it has none.

    Reading one costs the same wherever it lies. A source can be pickled and opens its files in each process that reads.

    Attributes:
        missing: photos that the data set lists and that are not there; they are no entries.
        apart: whether each row of one caption is an entry, since nothing tells which rows are of one photo.
    """

    missing: int = 0
    apart: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each of the data sets that are joined here, in order."""
        return (len(self),)

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> dict:
        """Entry `i` in 0..len-1. Raises ShardError for one that cannot be used."""
        raise NotImplementedError

    def location(self, i: int, column: str = "") -> str:
        """Where entry `i` lies, for messages about what its bytes hold."""
        raise NotImplementedError

    def checked_index(self, i: int) -> int:
        """Raises IndexError when `i` is outside 0..len-1."""
        if not 0 <= i < len(self):
            raise IndexError(f"entry {i} is outside 0..{len(self) - 1}")
        return int(i)


def usable_captions(captions: Sequence, caption_ids: Sequence, file, row: Optional[int], column: str) -> tuple[tuple[str, ...], tuple]:
    """(captions, their ids) without empty texts. Raises ShardError when none is left, or when one is not a text."""
    for caption in captions:
        if caption is not None and not isinstance(caption, str):
            raise ShardError.at(file, f"a caption is not a text ({caption!r:.60}); correct the row", row, column)
    kept = [k for k, caption in enumerate(captions) if caption is not None and caption.strip()]
    if not kept:
        raise ShardError.at(file, "no caption; write one, or leave the row out", row, column)
    return tuple(captions[k] for k in kept), tuple(caption_ids[k] for k in kept) if len(caption_ids) else ()


class RowGroups:
    """Rows of equal keys, in the order in which each key comes first; `groups[i]` are the row numbers of group i, ascending.

    Args:
        keys: (N,) integers; rows of the same key belong together.
        kept: (N,) bool, rows to use.
    """

    def __init__(self, keys: np.ndarray, kept: np.ndarray):
        rows = np.flatnonzero(kept)
        _, first, inverse = np.unique(keys[rows], return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        group = rank[inverse]
        self._rows = rows[np.argsort(group, kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(first)))])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self._rows[self._starts[i] : self._starts[i + 1]]
