"""Weights of pickle files that hold numpy arrays by name, such as detectron2's model zoo, read without running what stands in them.

A pickle may name any function. This reader knows those that rebuild an array, and an ordered dict; everything else is an error.
"""

import collections
import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ofaseg.models.state import CheckpointError

LARGEST_DIMENSIONS = 8


class ArrayPickleError(pickle.UnpicklingError):
    """The file names something that has no place among arrays."""


def _bytes(text, encoding: str = "latin1") -> bytes:
    """What Python 3 calls to write bytes in an old protocol."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ArrayPickleError(f"text of encoding {encoding!r}")
    return text.encode("latin1")


class _Type:
    """An array type by its code, and the byte order that follows it; of numbers only."""

    def __init__(self, code, align=False, copy=False):
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or code.strip("<>=|")[:1] not in "fiub" or not code.strip("<>=|")[1:].isdigit():
            raise ArrayPickleError(f"an array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "=", "|"):
            raise ArrayPickleError(f"a byte order {order!r}")
        self.dtype = self.dtype if order == "|" else self.dtype.newbyteorder(order)


class _Array:
    """An array to be: filled by the state that follows in the file."""

    values: np.ndarray

    def __setstate__(self, state) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ArrayPickleError("an array without content")
        _, shape, kind, by_column, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(kind, _Type) or not isinstance(content, bytes) or not _is_shape(shape):
            raise ArrayPickleError("an array of other things than numbers")
        if len(content) != kind.dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise ArrayPickleError(f"an array of shape {shape} with {len(content)} bytes")
        self.values = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if by_column else "C")


def _is_shape(shape) -> bool:
    sizes = isinstance(shape, tuple) and len(shape) <= LARGEST_DIMENSIONS
    return sizes and all(isinstance(side, int) and 0 <= side for side in shape)


def _array(kind=None, shape=None, code=None) -> _Array:
    return _Array()


def _number(kind, content):
    """A numpy number as a Python one."""
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(kind, _Type) or not isinstance(content, bytes) or len(content) != kind.dtype.itemsize:
        raise ArrayPickleError("a number without content")
    return np.frombuffer(content, kind.dtype)[0].item()


class _ArrayUnpickler(pickle.Unpickler):
    KNOWN = {
        **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
        "numpy.ndarray": _Array,
        "numpy.dtype": _Type,
        "_codecs.encode": _bytes,
        "collections.OrderedDict": collections.OrderedDict,
    }

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" not in self.KNOWN:
            raise ArrayPickleError(f"it mentions {module}.{name}")
        return self.KNOWN[f"{module}.{name}"]

    def persistent_load(self, pid):
        raise ArrayPickleError("it refers to things outside")


def load_arrays(path) -> dict[str, Tensor]:
    """Weights by name of a pickle file of numpy arrays, with or without an entry `model` around them; float32.

    Raises:
        CheckpointError: missing, damaged, without arrays, or with anything in it but arrays, numbers, texts and collections of them.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: checkpoint not found; check the path")
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except ArrayPickleError as error:
        raise CheckpointError(f"{path}: not a file of arrays only ({error}); it was not loaded. Use the published file") from error
    except Exception as error:  # a damaged pickle fails in any way: nothing of it was executed
        raise CheckpointError(f"{path}: damaged, or no pickle of arrays ({type(error).__name__}: {error}); copy it again") from error
    weights = content.get("model", content) if isinstance(content, dict) else None
    arrays = {key: value for key, value in weights.items() if isinstance(value, _Array)} if isinstance(weights, dict) else {}
    if not arrays or not all(isinstance(key, str) and hasattr(value, "values") for key, value in arrays.items()):
        raise CheckpointError(f"{path}: no arrays by name in it; give weights such as R-50.pkl of detectron2's model zoo")
    return {key: torch.from_numpy(value.values.astype(np.float32)) for key, value in arrays.items()}
