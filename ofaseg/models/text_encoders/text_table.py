"""Text vectors that somebody else computed: a file of class names and vectors, and the tokenizer that finds a name in it.

Three kinds of file:

- `.npz` with the arrays `names` (n,) text and `vectors` (n, D);
- `.npy` with vectors (n, D), and beside it `<stem>.names.txt` with one name a line;
- `.safetensors` with one tensor (D,) per name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from ofaseg.models.state import CheckpointError


@dataclass(frozen=True)
class TextTable:
    """Names and their vectors.

    Attributes:
        names: n texts.
        vectors: (n, D) float32, of any length but 0.
        source: the file, for messages.
    """

    names: tuple[str, ...]
    vectors: np.ndarray
    source: str

    @classmethod
    def read(cls, path) -> "TextTable":
        """The table in a file.

        Raises:
            CheckpointError: missing, unreadable, not of one of the three kinds; a name twice, a vector of zeros or with nan.
        """
        path = Path(path)
        if path.suffix not in READERS:
            raise CheckpointError(f"{path}: text vectors come as {', '.join(READERS)}")
        if not path.is_file():
            raise CheckpointError(f"{path}: text vectors not found; check the path")
        try:
            names, vectors = READERS[path.suffix](path)
        except CheckpointError:
            raise
        except Exception as error:  # numpy and safetensors have errors of their own for damaged files
            raise CheckpointError(f"{path}: text vectors cannot be read ({error}); write the file again") from error
        table = cls(tuple(names), np.asarray(vectors, dtype=np.float32), str(path))
        table._check()
        return table

    def _check(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.names) or not len(self.names):
            raise CheckpointError(f"{self.source}: {len(self.names)} names for vectors of shape {self.vectors.shape}; need one row a name")
        bad = ~np.isfinite(self.vectors).all(1) | ~self.vectors.any(1)
        if bad.any():
            raise CheckpointError(f"{self.source}: the vector of {self.names[int(bad.argmax())]!r} is not finite, or zero")
        seen: dict[str, str] = {}
        for name in self.names:
            other = seen.setdefault(_key(name), name)
            if other is not name:
                raise CheckpointError(f"{self.source}: {other!r} and {name!r} are one name; keep one of them")


def _key(name: str) -> str:
    """What a name is compared by: lower case, underscores as blanks, single blanks."""
    return " ".join(name.replace("_", " ").lower().split())


def _read_npz(path: Path) -> tuple[Sequence[str], np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        if not {"names", "vectors"} <= set(file.files):
            raise CheckpointError(f"{path}: needs the arrays names and vectors, has {', '.join(file.files)}")
        return [str(name) for name in file["names"]], file["vectors"]


def _read_npy(path: Path) -> tuple[Sequence[str], np.ndarray]:
    beside = path.with_suffix(".names.txt")
    if not beside.is_file():
        raise CheckpointError(f"{path}: needs {beside.name} beside it, with one name a line")
    lines = beside.read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()], np.load(path, allow_pickle=False)


def _read_safetensors(path: Path) -> tuple[Sequence[str], np.ndarray]:
    from safetensors.numpy import load_file

    rows = load_file(path)
    return list(rows), np.stack([np.asarray(row, dtype=np.float32).reshape(-1) for row in rows.values()])


READERS = {".npz": _read_npz, ".npy": _read_npy, ".safetensors": _read_safetensors}


class NameTokenizer:
    """Names to the rows of a table, with the call of `ofaseg.tokenizers`' text tokenizers.

    Args:
        table: where names are looked up, without regard to case, underscores and repeated blanks.

    Attributes:
        pad: 0, which never is read.
    """

    pad = 0

    def __init__(self, table: TextTable):
        self.source, self.rows = table.source, {_key(name): row for row, name in enumerate(table.names)}

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, texts: Sequence[str], length: int = 1) -> tuple[Tensor, Tensor]:
        """n names -> ids and mask, both (n, 1) int64.

        Raises:
            ValueError: names that the table does not have.
        """
        unknown = [text for text in texts if _key(text) not in self.rows]
        if unknown:
            raise ValueError(
                f"{self.source}: no vector of {', '.join(map(repr, unknown[:5]))}{' and others' if len(unknown) > 5 else ''}; it has "
                f"{len(self)} names, such as {', '.join(list(self.rows)[:3])}. Templates have to be 'name' with a table"
            )
        ids = torch.tensor([[self.rows[_key(text)]] for text in texts]).reshape(-1, 1)
        return ids, torch.ones_like(ids)
