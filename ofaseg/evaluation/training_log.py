"""Training curves from the lines that fairseq writes with `--log-format json` (to `--log-file`, or redirected output)."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

NO_CURVES = {"epoch", "update", "num_updates", "wall", "train_wall", "wps", "ups", "wpb", "bsz", "clip", "gb_free", "cuda_gb_allocated"}
"""Counters and clocks among fairseq's numbers."""


@dataclass
class TrainingLog:
    """Numbers over updates of one training run.

    Attributes:
        name: what to call the run.
        curves: series name (``train_loss``, ``valid_mIoU`` ...) -> list of (update, value), ascending and finite.
    """

    name: str
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.curves.values())


def read_training_log(path, name: str = "") -> TrainingLog:
    """Reads one log. Lines that hold no JSON object (other messages, a line cut off by a crash) are passed over.

    A run that was stopped and resumed writes the updates after its last checkpoint twice: the later value counts.
    """
    path = Path(path)
    values: dict[str, dict[float, float]] = {}
    update = 0.0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        record = _json_object(line)
        if record is None:
            continue
        update = _number(_first(record, "num_updates", "train_num_updates", "valid_num_updates"), update)
        for key, value in record.items():
            number = _number(value, math.nan)
            series = _series_name(key, record)
            if series and math.isfinite(number):
                values.setdefault(series, {})[update] = number
    return TrainingLog(name or path.stem, {series: sorted(points.items()) for series, points in values.items()})


def _series_name(key: str, record: dict) -> str:
    """`loss` of a line inside an epoch is called train_loss; counters and clocks are no curves."""
    base = key.removeprefix("train_").removeprefix("valid_")
    if base in NO_CURVES or base.startswith("best_"):
        return ""
    if "update" in record:  # a line from inside an epoch
        return f"train_{key}"
    return key if key.startswith(("train_", "valid_")) else ""


def _json_object(line: str):
    """The JSON object at the end of a line that may begin with time, level and logger name; None when there is none."""
    start = line.find("{")
    if start < 0 or not line.rstrip().endswith("}"):
        return None
    try:
        record = json.loads(line[start:])
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and ("epoch" in record or "num_updates" in record) else None


def _first(record: dict, *keys):
    return next((record[key] for key in keys if key in record), None)


def _number(value, default: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return default
