"""What was found in one pass over a split, as plain arrays in an `.npz` file beside its shards.

The file names sizes, times and sampled contents of the shards it was made from, and how their labels are stored. One that does not
match is made again.
"""

import hashlib
import json
import logging
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Optional

import numpy as np

from ofaseg.atomic import atomic_write
from ofaseg.data.shards import ShardReader
from ofaseg.data.tsv import fingerprint
from ofaseg.vocabulary import ClassVocabulary

logger = logging.getLogger(__name__)

_SHARD_NUMBER = re.compile(r"-\d{5,}-of-\d{5,}$")
DAMAGE = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What reading a damaged file raises."""


def kept_path(reader: ShardReader, kind: str) -> Path:
    """`<split>.<kind>.npz` beside a reader's first file."""
    first = Path(reader.paths[0])
    return first.with_name(f"{_SHARD_NUMBER.sub('', first.stem)}.{kind}.npz")


def shards_key(reader: ShardReader, vocabulary: ClassVocabulary, version: int) -> str:
    """What a result depends on: the files, wherever they lie and however they are called, and the meaning of their labels."""
    files = []
    for path in reader.paths:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            files.append([status.st_size, status.st_mtime_ns, fingerprint(file, status.st_size).hex()])
    facts = [version, len(vocabulary), vocabulary.label_offset, vocabulary.ignore_label, files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def keep(path: Path, key: str, arrays: dict[str, np.ndarray], texts: dict[str, str], what: str) -> None:
    """Stores arrays and texts under a key; where the folder cannot be written, a note in the log says that `what` is done again."""
    texts = texts | {"key": key}
    try:
        with atomic_write(path) as file:
            np.savez(file, **arrays, **{name: np.frombuffer(text.encode(), dtype=np.uint8) for name, text in texts.items()})
    except OSError as error:
        logger.info("%s cannot be stored (%s): %s at each start", path, error.strerror or error, what)


def kept(path: Path, key: str) -> Optional[dict]:
    """Arrays by name, texts among them as arrays of bytes; None when there is no file, or it belongs to other shards.

    Raises one of `DAMAGE` for a damaged file.
    """
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as archive:
        if archive["key"].tobytes().decode() != key:
            logger.info("%s belongs to other shards or labels; making it again", path)
            return None
        return {name: archive[name] for name in archive.files}
