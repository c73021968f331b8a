"""Weights out of a TorchScript archive, the form in which OpenAI publishes CLIP, without running the program in it.

The archive is a zip file: `data.pkl` describes the module tree, `data/<n>` are the bytes of its tensors. The description is a pickle;
here only lists, dicts, numbers, texts and tensors are made of it, everything else becomes an inert record of its attributes.
"""

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ofaseg.models.state import CheckpointError

STORAGES = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Attributes:
    """Stands in for a module of the archive: its attributes by name."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        self.attributes: dict = {}

    def __setstate__(self, state):
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Unpickles a description; no class or function of the file's choice is ever looked up."""

    def __init__(self, file, storage):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str):
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _parameter
        if module == "torch.jit._pickle":
            return _first_argument  # lists of numbers and tensors with their type
        if module == "collections" and name == "OrderedDict":
            return dict
        if module.startswith("__torch__"):
            return type(name, (_Attributes,), {})
        raise pickle.UnpicklingError(f"mentions {module}.{name}, which has no place among weights")

    def persistent_load(self, identity):
        _, dtype, key, _, elements, *_ = identity
        return self._storage(key, dtype, elements)


def _tensor(storage: Tensor, offset: int, size, stride, *_) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _parameter(tensor: Tensor, *_) -> Tensor:
    return tensor


def _first_argument(value, *_):
    return value


def is_torchscript(path) -> bool:
    """Whether a file is a zip archive that holds a program of TorchScript beside its tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):  # whoever reads it next says what is wrong with it
        return False


def archive_weights(path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive, by their names in the module tree.

    Raises:
        CheckpointError: damaged, or with something in it that is no weight.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            folder = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")).split("/")[0]
            read: dict[str, Tensor] = {}

            def storage(key: str, dtype: torch.dtype, elements: int) -> Tensor:
                if key not in read:
                    content = bytearray(archive.read(f"{folder}/data/{key}"))
                    read[key] = torch.frombuffer(content, dtype=dtype)[:elements] if content else torch.empty(0, dtype=dtype)
                return read[key]

            with archive.open(f"{folder}/data.pkl") as file:
                tree = _Reader(file, storage).load()
        weights = dict(_tensors(tree, ""))
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise CheckpointError(f"{path}: a TorchScript archive that cannot be read as weights ({error}); copy it again") from error
    if not weights:
        raise CheckpointError(f"{path}: a TorchScript archive without weights; give a model checkpoint")
    return weights


def _tensors(node, prefix: str):
    """(name, tensor) of everything below `node`."""
    if isinstance(node, Tensor):
        yield prefix, node
    elif isinstance(node, _Attributes):
        for name, child in node.attributes.items():
            yield from _tensors(child, f"{prefix}.{name}" if prefix else str(name))
