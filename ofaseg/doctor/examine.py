"""Decides what a path is and has it checked."""

import os
from collections.abc import Sequence
from pathlib import Path

from ofaseg.data.folder import list_splits
from ofaseg.doctor.checkpoints import check_checkpoint
from ofaseg.doctor.findings import Findings, finding
from ofaseg.doctor.folders import check_raw_folder
from ofaseg.doctor.labels import Conventions
from ofaseg.doctor.run_config import check_config
from ofaseg.doctor.runs import CHECKPOINT_SUFFIXES, LOG_SUFFIXES, check_log, check_run_folder, is_run_folder
from ofaseg.doctor.shards import check_data_folder, check_shard_file
from ofaseg.doctor.vocabulary import check_class_list

_KINDS = (
    "a data folder, a .tsv or .parquet file, a raw folder with images/ and labels/, a class list (.txt, .json), a checkpoint "
    "(.pt, .safetensors), a run folder or its log, or a configuration (.yaml, .sh)"
)


def examine(
    paths: Sequence[str], workers: int = 1, limit: int = 1000, quiet: bool = False, conventions: Conventions | None = None
) -> Findings:
    """Checks every path and returns what was found; the result does not depend on `workers`.

    Args:
        paths: data folders, shard files, raw folders, class lists, checkpoints, run folders, logs, configurations.
        workers: processes that decode samples.
        limit: findings of one code that are kept; all are counted.
        quiet: no progress bar.
        conventions: how raw folders store labels; by default class 0 is 0, and 255 is no label.
    """
    findings = Findings(limit)
    for path in map(os.fspath, paths):
        try:
            _examine(path, findings, workers, quiet, conventions)
        except OSError as error:
            message = f"cannot be read ({error.strerror or error})"
            findings.add(finding("unreadable", error.filename or path, message, "check its permissions and the disk"))
    return findings


def _examine(path: str, findings: Findings, workers: int, quiet: bool, conventions: Conventions | None) -> None:
    place = Path(path)
    if not place.exists():
        broken = f"; it is a link to {os.readlink(path)}" if place.is_symlink() else ""
        findings.add(finding("missing_path", path, f"there is no such file or folder{broken}", "check the path"))
    elif place.is_dir():
        _examine_folder(place, findings, workers, quiet, conventions)
    elif path.endswith((".tsv", ".parquet")):
        check_shard_file(path, findings, workers, quiet)
    elif path.endswith((".json", ".txt")):
        check_class_list(path, findings)
    elif path.endswith(CHECKPOINT_SUFFIXES):
        check_checkpoint(path, findings)
    elif path.endswith(LOG_SUFFIXES):
        check_log(path, findings)
    elif path.endswith((".yaml", ".yml", ".sh")):
        check_config(path, findings)
    else:
        findings.add(finding("unknown_path", path, "not a kind of file that can be checked", f"give {_KINDS}"))


def _examine_folder(root: Path, findings: Findings, workers: int, quiet: bool, conventions: Conventions | None) -> None:
    if list_splits(root) or (root / "vocabulary.json").exists():
        check_data_folder(str(root), findings, workers, quiet)
    elif (root / "images").is_dir() and (root / "labels").is_dir():
        check_raw_folder(str(root), findings, workers, quiet, conventions)
    elif is_run_folder(root):
        check_run_folder(str(root), findings)
    else:
        holds = ", ".join(sorted(os.listdir(root))[:6]) or "nothing"
        findings.add(finding("unknown_path", root, f"a folder of no known kind; it holds {holds}", f"give {_KINDS}"))
