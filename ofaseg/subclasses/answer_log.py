"""Every raw answer of a language model, kept as JSON lines: the audit of a label set, and the cache of the next run."""

import fcntl
import hashlib
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Iterator, Mapping

logger = logging.getLogger(__name__)


def request_key(prompt: str, identity: Mapping) -> str:
    """sha256 of a prompt and of what else decides the answer: model and parameters, JSON-ready, in any order."""
    text = json.dumps({"prompt": prompt, **identity}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerLog:
    """JSON lines, one a request, appended and never changed.

    A line is written by one call and flushed to disk before the next request goes out, so a killed run loses at most the answer
    it was waiting for; a line that was cut off is passed over and said. One run at a time writes.

    Args:
        path: the file; made when it is absent.

    Raises:
        ValueError: another run is writing the file.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise ValueError(f"{self.path}: another run is writing there; wait for it, or give another --answers file") from error
        self._answers: dict[str, list[str]] = {}
        for record in self._read():
            if isinstance(record.get("key"), str) and isinstance(record.get("answer"), str):
                self._answers.setdefault(record["key"], []).append(record["answer"])

    def _read(self) -> Iterator[dict]:
        content = self.path.read_bytes()
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                logger.warning("%s, line %d: cut off, as by a killed run; passed over", self.path, number)
                continue
            if isinstance(record, dict):
                yield record
        if content and not content.endswith(b"\n"):
            self._write(b"\n")  # the next line does not go on with the one that was cut off

    def answers(self, key: str) -> tuple[str, ...]:
        """The raw answers to a request, the latest first."""
        return tuple(reversed(self._answers.get(key, ())))

    def append(self, key: str, record: Mapping) -> None:
        """Keeps one answer, or the error in place of one: `record` with key and time before it."""
        entry = {"key": key, "time": datetime.now(UTC).isoformat(timespec="seconds"), **record}
        # characters that cannot be stored (lone surrogates) are written as \uXXXX by ensure_ascii
        self._write(json.dumps(entry, ensure_ascii=True).encode() + b"\n")
        os.fsync(self._file)
        if isinstance(entry.get("answer"), str):
            self._answers.setdefault(key, []).append(entry["answer"])

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> "AnswerLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()
