"""Checks of run folders: the training log, the checkpoints and the configuration that they carry."""

import json
import math
from pathlib import Path

from ofaseg.checkpoints import CheckpointError, load_state
from ofaseg.doctor.checkpoints import check_checkpoint
from ofaseg.doctor.findings import Findings, finding
from ofaseg.doctor.run_config import NAMED, Settings, check_config, check_settings

CHECKPOINT_SUFFIXES = (".pt", ".safetensors")
LOG_SUFFIXES = (".jsonl", ".log")
_HEALTH = ("loss", "gnorm", "nll_loss")


def is_run_folder(root: Path) -> bool:
    """Whether a folder holds checkpoints or the log of a training run."""
    return any(path.suffix in (*CHECKPOINT_SUFFIXES, ".jsonl") for path in root.iterdir()) or (root / ".hydra").is_dir()


def check_run_folder(root: str, findings: Findings) -> None:
    """Checks every log, checkpoint and hydra configuration directly below a run folder."""
    for path in sorted(Path(root).iterdir()):
        if path.suffix in LOG_SUFFIXES:
            check_log(str(path), findings)
        elif path.suffix in CHECKPOINT_SUFFIXES:
            check_checkpoint(str(path), findings)
    hydra = Path(root) / ".hydra" / "config.yaml"
    newest = max((path for path in Path(root).glob("*.pt")), key=lambda path: path.stat().st_mtime, default=None)
    if hydra.is_file():
        check_config(str(hydra), findings)
    elif newest is not None:
        _check_recorded(newest, findings)


def _check_recorded(path: Path, findings: Findings) -> None:
    """The names in the configuration of a checkpoint. Its folders may have moved since: they are not looked for."""
    try:
        cfg = load_state(path)["cfg"] or {}
    except CheckpointError:  # reported with the file
        return
    names = {group: str(values["_name"]) for group, values in cfg.items() if _names_part(group, values)}
    check_settings(Settings(names), str(path), "", findings)


def _names_part(group: str, values) -> bool:
    return group in NAMED and isinstance(values, dict) and bool(values.get("_name"))


def check_log(path: str, findings: Findings) -> None:
    """Reads a log of `--log-format json`: losses that are not finite, scores that stay at zero, rows left out."""
    scores: dict[str, list[float]] = {}
    skipped, unhealthy = 0.0, None
    with open(path, encoding="utf-8", errors="replace") as file:
        for row, line in enumerate(file):
            for key, value in _numbers(line).items():
                if key.endswith("mIoU") and "best" not in key:
                    scores.setdefault(key, []).append(value)
                elif key.split("_", 1)[-1] in _HEALTH or key in _HEALTH:
                    unhealthy = unhealthy or (None if math.isfinite(value) else (row, key, value))
                elif key == "train_bad_rows":
                    skipped += value
    if unhealthy:
        row, key, value = unhealthy
        cure = "lower the learning rate, add --clip-norm 1.0, and run `ofaseg doctor` on the data"
        findings.add(finding("nan_loss", path, f"{key} is {value}, for the first time here", cure, row, key))
    for key, values in scores.items():
        if not any(values):
            message = f"{key} is 0 in all {len(values)} validations"
            cure = "check the class list and label_offset with `ofaseg doctor` on the data"
            findings.add(finding("zero_score", path, message, cure, column=key))
    if skipped:
        message = f"{skipped:.0f} rows were left out of training, counted over its epochs"
        findings.add(finding("skipped_rows", path, message, "`ofaseg doctor` on the data lists them", column="train_bad_rows"))


def _numbers(line: str) -> dict[str, float]:
    """The numbers of the JSON object at the end of a line, also those written as text."""
    start = line.find("{")
    if start < 0:
        return {}
    try:
        record = json.loads(line[start:])
    except json.JSONDecodeError:  # another message, or a line cut off by a crash
        return {}
    numbers = {}
    for key, value in record.items() if isinstance(record, dict) else ():
        try:
            numbers[key] = float(value)
        except (TypeError, ValueError):  # text, lists
            continue
    return numbers
