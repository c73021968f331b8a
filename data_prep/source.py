"""Reading raw datasets: what converters share."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


class SourceError(ValueError):
    """A raw file that cannot be used; the message names it and says what to do."""


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
    try:
        stored = np.asarray(Image.open(io.BytesIO(data)))
    except UnidentifiedImageError as error:
        raise SourceError(f"{path}: damaged label map (not an image); copy it again") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise SourceError(f"{path}: damaged label map ({error}); copy it again") from error
    if stored.ndim != 2 or stored.dtype.kind != "u":
        problem = f"a label map of shape {stored.shape} {stored.dtype}, expected one channel of class ids"
        raise SourceError(f"{path}: {problem}; convert it first")
    return stored
