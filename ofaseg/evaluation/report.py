"""Scores -> JSON, a Markdown table, and a line for people. Percentages are made here and nowhere before."""

import json
import math
import statistics
from pathlib import Path
from typing import Optional, Sequence

from ofaseg.atomic import atomic_write

SEMANTIC_COLUMNS = (
    ("mIoU", "mIoU"),
    ("FB_IoU", "FB-IoU"),
    ("thing_mIoU", "objects"),
    ("stuff_mIoU", "backgrounds"),
    ("base_mIoU", "base"),
    ("novel_mIoU", "novel"),
    ("harmonic_mIoU", "harmonic"),
    ("mAcc", "mAcc"),
    ("aAcc", "aAcc"),
    ("fwIoU", "fwIoU"),
)
_GROUPS = (("", ""), ("thing_", "objects "), ("stuff_", "backgrounds "), ("base_", "base "), ("novel_", "novel "))
PANOPTIC_COLUMNS = (
    *((prefix + key, title + key) for prefix, title in _GROUPS for key in ("PQ", "SQ", "RQ")),
    ("harmonic_PQ", "harmonic PQ"),
)
INSTANCE_COLUMNS = (
    ("AP", "AP"),
    ("AP50", "AP50"),
    ("AP75", "AP75"),
    ("AP_small", "AP small"),
    ("AP_medium", "AP medium"),
    ("AP_large", "AP large"),
    ("base_AP", "base AP"),
    ("novel_AP", "novel AP"),
    ("base_AP50", "base AP50"),
    ("novel_AP50", "novel AP50"),
)
TABLES = (SEMANTIC_COLUMNS, PANOPTIC_COLUMNS, INSTANCE_COLUMNS)
"""For each table score key and column title, in their order; a column without any value is left out, and a table without its first."""

CLASS_COLUMNS = (
    ("IoU_per_class", "IoU"),
    ("acc_per_class", "accuracy"),
    ("label_share_per_class", "share of pixels"),
    ("PQ_per_class", "PQ"),
    ("SQ_per_class", "SQ"),
    ("RQ_per_class", "RQ"),
    ("AP_per_class", "AP"),
)
"""Lists of scores per class and their titles."""


def percent(value: Optional[float]) -> str:
    """0.4237 -> '42.4'; '–' for what is undefined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def score_cell(scores: dict, key: str) -> str:
    """One score in percent, with the standard deviation over seeds where `mean_over_runs` found one: '47.4 ± 0.8'."""
    spread = (scores.get("spread") or {}).get(key)
    return percent(scores.get(key)) + ("" if spread is None else f" ± {percent(spread)}")


def mean_over_runs(runs: Sequence[dict]) -> dict:
    """Scores of several runs over the same classes as one: means, with ``runs`` and the sample deviations in ``spread``.

    One run is handed back as it is. Whatever is not a score (vocabulary, constant prediction, images) is the first run's; a
    score that is undefined in some run is undefined in the mean.

    Raises:
        ValueError: the runs were scored over different class lists or different numbers of images.
    """
    if len(runs) == 1:
        return runs[0]
    for key in ("class_names", "images"):
        if any(run.get(key) != runs[0].get(key) for run in runs):
            raise ValueError(f"runs of one name must share {key}, got {[run.get(key) for run in runs]}; give them different names")
    known = [key for columns in TABLES for key, _ in columns if any(key in run for run in runs)]
    values = {key: [run.get(key) for run in runs] for key in known}
    merged = {key: _mean(found) for key, found in values.items()}
    for key, _ in CLASS_COLUMNS:
        if key != "label_share_per_class" and all(key in run for run in runs):
            merged[key] = [_mean(found) for found in zip(*(run[key] for run in runs), strict=True)]
    spread = {key: statistics.stdev(found) for key, found in values.items() if merged[key] is not None}
    return runs[0] | merged | {"runs": len(runs), "spread": spread}


def _mean(values: Sequence[Optional[float]]) -> Optional[float]:
    return None if None in values else statistics.fmean(values)


def columns_with_values(results: Sequence[dict], columns: Sequence[tuple[str, str]] = SEMANTIC_COLUMNS) -> list[tuple[str, str]]:
    """The entries of `columns` that at least one of the score dicts has."""
    return [(key, title) for key, title in columns if any(scores.get(key) is not None for scores in results)]


def tables_with_values(results: Sequence[tuple[str, dict]]) -> list[tuple[list[tuple[str, str]], list[tuple[str, dict]]]]:
    """(columns, rows) of each of TABLES that has anything to show; a row without its first score is left out of a table."""
    found = []
    for columns in TABLES:
        rows = [(name, scores) for name, scores in results if columns[0][0] in scores]
        if rows:
            found.append((columns_with_values([scores for _, scores in rows], columns), rows))
    return found


def markdown_table(results: Sequence[tuple[str, dict]], header: bool = True) -> str:
    """Markdown tables with one row per (name, scores), one table for each of TABLES; values in percent.

    With `header` False only the rows, to append to a table made before from the same kind of scores.
    """
    tables = []
    for columns, rows in tables_with_values(results):
        lines = []
        if header:
            lines.append("| | " + " | ".join(title for _, title in columns) + " | images |")
            lines.append("|---|" + "---:|" * (len(columns) + 1))
        for name, scores in rows:
            cells = [score_cell(scores, key) for key, _ in columns] + [str(scores.get("images", "–"))]
            lines.append(f"| {_cell(row_title(name, scores))} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def row_title(name: str, scores: dict) -> str:
    """The name of a row, with the number of runs behind it where there are several."""
    return f"{name} ({scores['runs']} runs)" if scores.get("runs") else name


def class_table(scores: dict) -> str:
    """Markdown: the scores of CLASS_COLUMNS per class, in percent, as far as there are any."""
    columns = [(key, title) for key, title in CLASS_COLUMNS if scores.get(key) is not None]
    lines = ["| class | " + " | ".join(title for _, title in columns) + " |", "|---|" + "---:|" * len(columns)]
    for k, name in enumerate(scores["class_names"]):
        lines.append(f"| {_cell(name)} | " + " | ".join(percent(scores[key][k]) for key, _ in columns) + " |")
    return "\n".join(lines) + "\n"


def few_shot_class_table(scores: dict) -> str:
    """Markdown: IoU in percent and tested pairs of each class of `few_shot_scores`, or of `mean_over_folds`."""
    rows = zip(scores["class_names"], scores["IoU_per_class"], scores["pairs_per_class"])
    lines = ["| class | IoU | pairs |", "|---|---:|---:|", *(f"| {_cell(name)} | {percent(iou)} | {pairs} |" for name, iou, pairs in rows)]
    return "\n".join(lines) + "\n"


def with_constant(name: str, scores: dict) -> list[tuple[str, dict]]:
    """The result, followed by the best constant prediction of the same data when the scores carry it."""
    rows = [(name, scores)]
    if scores.get("constant"):
        label = f"best constant prediction ({scores['constant'].get('constant_name')})"
        rows.append((label, scores["constant"] | {"images": scores.get("images", "–")}))
    return rows


def retrieval_table(results: Sequence[tuple[str, dict]]) -> str:
    """A Markdown table of (name, `retrieval_scores` with images and captions), in percent: R@k of captions for photos, then of photos
    for captions, and RSUM, the sum of the six.
    """
    directions = {"I2T": "image to text", "T2I": "text to image"}
    columns = [(f"{key}-R@{k}", f"{title} R@{k}") for key, title in directions.items() for k in (1, 5, 10)] + [("RSUM", "RSUM")]
    lines = ["| | " + " | ".join(title for _, title in columns) + " | images | captions |", "|---|" + "---:|" * (len(columns) + 2)]
    for name, scores in results:
        cells = [percent(scores.get(key)) for key, _ in columns] + [str(scores.get(key, "–")) for key in ("images", "captions")]
        lines.append(f"| {_cell(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def jsonable(value):
    """The same structure with nan and infinities replaced by None, for strict JSON."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path, data: dict) -> None:
    """Writes strict, indented JSON atomically."""
    with atomic_write(path, "w") as file:
        json.dump(jsonable(data), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def write_text(path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with atomic_write(path, "w") as file:
        file.write(text)


def read_scores(path) -> dict:
    """A score file written by `write_json`.

    Raises:
        ValueError: not valid JSON, or no scores inside.
    """
    path = Path(path)
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a score file ({error}); write one with `ofaseg evaluate ... --out`") from error
    firsts = [columns[0][0] for columns in TABLES]
    if not isinstance(scores, dict) or not any(key in scores for key in firsts):
        raise ValueError(f"{path}: holds no {' or '.join(firsts)}; write one with `ofaseg evaluate ... --out`")
    return scores


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
