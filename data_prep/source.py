"""Reading raw datasets: what converters share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import numpy as np

from ofaseg.data import codec
from ofaseg.vocabulary import ClassVocabulary


class SourceError(ValueError):
    """A raw file that cannot be used; the message names it and says what to do."""


class Source:
    """The samples of one split of a raw dataset, by number: what a converter module's `open_split` returns.

    A source is small and picklable, so that several processes and machines can share the work; it lists its files when it is
    made and reads them in `__getitem__`. The same number is always the same sample.

    Attributes:
        vocabulary: the classes of the label maps, None without labels.
        columns: the columns of `ofaseg.data.rows` that its samples fill.
    """

    vocabulary: Optional[ClassVocabulary] = None
    columns: tuple[str, ...] = ("image", "label_map", "id")

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> dict:
        """Sample `i` in 0..len-1, a dict with `columns`; files as bytes (kept as they are) or arrays: image (H, W, 3) uint8,
        label_map (H, W) int32 class ids with `IGNORE_INDEX`, segment_map (H, W) segment ids.

        Raises:
            SourceError, FileNotFoundError: a raw file of this sample is missing or unusable; the message names it.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))

    def name(self, i: int) -> str:
        """Where sample `i` comes from (a file), for messages; reads nothing."""
        return f"sample {i}"

    def files(self, i: int) -> tuple[str, ...]:
        """The raw files of sample `i`, whose sizes and times tell whether it changed; names of no file are passed over."""
        return (self.name(i),)


def read_label_file(path) -> np.ndarray:
    """(H, W) uint8 or uint16 values of a label map file, as stored (palette indices for palette images).

    Raises:
        FileNotFoundError: there is no such file.
        SourceError: damaged, or not one channel of integers.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: label map not found; every photo needs one of the same name") from error
    return stored_label_values(data, str(path))


def stored_label_values(data: bytes, where: str) -> np.ndarray:
    """(H, W) uint8 or uint16 values of a label map's bytes, as stored.

    Raises:
        SourceError: damaged, a JPEG, or not one channel of integers; `where` stands before the reason.
    """
    try:
        return codec.decode_stored_labels(data, where)
    except codec.CodecError as error:
        raise SourceError(str(error)) from error
