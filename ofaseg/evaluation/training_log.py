"""Training curves from the lines that fairseq writes with `--log-format json` (to `--log-file`, or redirected output)."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from ofaseg.evaluation.configuration import read_logged_configuration

NO_CURVES = {"epoch", "update", "num_updates", "wall", "train_wall", "wps", "ups", "wpb", "bsz", "clip", "gb_free", "cuda_gb_allocated"}
"""Counters and clocks among fairseq's numbers."""


@dataclass
class TrainingLog:
    """Numbers over updates of one training run.

    Attributes:
        name: what to call the run.
        curves: series name (``train_loss``, ``valid_mIoU``, ``test_mIoU`` ...) -> list of (update, value), ascending and finite;
            a validation subset called ``val`` is ``valid`` here.
        configuration: option group -> option -> value, as fairseq logs them first; empty when the log has none.
    """

    name: str
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    configuration: dict[str, dict] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.curves.values())


def read_training_log(path, name: str = "") -> TrainingLog:
    """Reads one log. Lines that hold no JSON object (other messages, a line cut off by a crash) are passed over.

    A run that was stopped and resumed writes the updates after its last checkpoint twice: the later value counts.
    """
    path = Path(path)
    values: dict[str, dict[float, float]] = {}
    configuration: dict[str, dict] = {}
    update = 0.0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        record = _json_object(line)
        if record is None:
            configuration = read_logged_configuration(line) or configuration
            continue
        subset = _subset(record)
        update = _number(record.get(f"{subset}_num_updates", record.get("num_updates")), update)
        for key, value in record.items():
            number = _number(value, math.nan)
            series = _series_name(key, subset)
            if series and math.isfinite(number):
                values.setdefault(series, {})[update] = number
    return TrainingLog(name or path.stem, {series: sorted(points.items()) for series, points in values.items()}, configuration)


def _subset(record: dict) -> str:
    """What a line is about: `train` or the name of a validation subset at the end of an epoch, empty inside an epoch."""
    return next((key.removesuffix("_num_updates") for key in record if key.endswith("_num_updates")), "")


def _series_name(key: str, subset: str) -> str:
    """`loss` of a line inside an epoch is called train_loss, `val_loss` valid_loss; counters and clocks are no curves."""
    metric = key.removeprefix(f"{subset}_") if subset else key
    if metric in NO_CURVES or metric.startswith("best_"):
        return ""
    return f"{'valid' if subset == 'val' else subset or 'train'}_{metric}"


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


def _number(value, default: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return default
