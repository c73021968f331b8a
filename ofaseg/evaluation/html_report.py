"""One self-contained HTML page about one or more evaluations; see `html_page` for its frame."""

import math
from dataclasses import dataclass
from html import escape
from typing import Optional, Sequence

import numpy as np

from ofaseg.evaluation.charts import SERIES_COLOURS, bar_chart, line_chart
from ofaseg.evaluation.configuration import configuration_section
from ofaseg.evaluation.data_summary import DataSummary, data_section
from ofaseg.evaluation.html_confusion import CONFUSION_CSS, confusion_section
from ofaseg.evaluation.html_examples import EXAMPLES_CSS, EXAMPLES_SCRIPT, Example, examples_section
from ofaseg.evaluation.html_page import html_page
from ofaseg.evaluation.report import percent, row_title, score_cell, tables_with_values, with_constant
from ofaseg.evaluation.training_log import TrainingLog
from ofaseg.vocabulary import ClassVocabulary

TILES = (
    ("mIoU", "mIoU in %"),
    ("aAcc", "pixels right in %"),
    ("thing_mIoU", "objects mIoU"),
    ("stuff_mIoU", "backgrounds mIoU"),
    ("PQ", "PQ in %"),
    ("thing_PQ", "objects PQ"),
    ("stuff_PQ", "backgrounds PQ"),
    ("AP", "mask AP in %"),
)
"""Scores shown large, with what they are called."""
CLASS_BARS = {"IoU_per_class": "IoU", "PQ_per_class": "PQ", "AP_per_class": "AP"}
"""Scores drawn as bars per class, where there are any."""
SUBSETS = {"train": "training", "valid": "validation"}
"""Subset in a log -> what the legend says."""


@dataclass
class Result:
    """One evaluation.

    Attributes:
        name: what tables call it.
        scores: what `Evaluator.compute` returned.
        confusion: (K, K) pixels, rows are labels, columns predictions; None when it was not kept.
    """

    name: str
    scores: dict
    confusion: Optional[np.ndarray] = None


def html_report(
    title: str,
    results: Sequence[Result],
    vocabulary: ClassVocabulary,
    examples: Sequence[Example] = (),
    logs: Sequence[TrainingLog] = (),
    notes: str = "",
    details: str = "",
    configurations: Sequence[tuple[str, dict[str, dict]]] = (),
    data: Sequence[DataSummary] = (),
) -> str:
    """The page as text.

    Args:
        title: heading.
        results: evaluations in the order of the table; the first one is the one the page is about.
        vocabulary: the classes of the pictures and of the first result.
        examples: photos to show.
        logs: training runs to draw.
        notes: a few plain sentences under the heading; blank lines part paragraphs.
        details: plain text (commands, machine) folded away at the end.
        configurations: (name of the run, option groups), see `configuration_section`.
        data: folders of shards the run was trained or scored on.
    """
    sections = [_heading(title, notes), _tiles(results[0]) if results else "", _result_table(results)]
    sections += [examples_section(examples, vocabulary), _class_bars(results, vocabulary)]
    if results and results[0].confusion is not None:
        sections.append(confusion_section(results[0].confusion, results[0].scores["class_names"], results[0].name))
    sections += [_curves(logs), configuration_section(configurations), data_section(data, vocabulary)]
    if details:
        sections.append(f"<h2>Details</h2><details><summary>Commands and settings</summary><pre>{escape(details)}</pre></details>")
    return html_page(title, sections, EXAMPLES_CSS + CONFUSION_CSS, [EXAMPLES_SCRIPT] if examples else [])


def _heading(title: str, notes: str) -> str:
    paragraphs = "".join(f"<p>{escape(part.strip())}</p>" for part in notes.split("\n\n") if part.strip())
    return f"<h1>{escape(title)}</h1>{paragraphs}"


def _tiles(result: Result) -> str:
    scores, constant = result.scores, result.scores.get("constant") or {}
    tiles = [(title, percent(scores[key])) for key, title in TILES if key in scores]
    if constant:
        tiles.append(("best constant mIoU", percent(constant.get("mIoU"))))
    tiles.append(("images", str(scores.get("images", "–"))))
    cells = "".join(f'<div class="tile"><b>{value}</b><span class="muted">{escape(label)}</span></div>' for label, value in tiles)
    return f'<section class="tiles" aria-label="Scores of {escape(result.name, quote=True)}">{cells}</section>'


def _result_table(results: Sequence[Result]) -> str:
    if not results:
        return ""
    rows = [(result.name, result.scores) for result in results]
    rows += with_constant("", results[0].scores)[1:]
    tables = "".join(_score_table(columns, shown) for columns, shown in tables_with_values(rows))
    return f"<h2>Results</h2>{tables}"


def _score_table(columns: Sequence[tuple[str, str]], rows: Sequence[tuple[str, dict]]) -> str:
    head = "<tr><th scope=col>%</th>" + "".join(f"<th scope=col>{title}</th>" for _, title in columns) + "<th scope=col>images</th></tr>"
    body = ""
    for i, (name, scores) in enumerate(rows):
        cells = "".join(f"<td>{score_cell(scores, key)}</td>" for key, _ in columns) + f"<td>{escape(str(scores.get('images', '–')))}</td>"
        body += f"<tr{' class=first' if i == 0 else ''}><td>{escape(row_title(name, scores))}</td>{cells}</tr>"
    return f'<div class="card scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def class_series(results: Sequence[Result], key: str) -> list[tuple[str, list]]:
    """(name, scores per class) of the results that have `key`, a list over the classes of the first result; at most four."""
    names = results[0].scores.get("class_names") if results else None
    return [(r.name, r.scores[key]) for r in results if r.scores.get(key) is not None and r.scores.get("class_names") == names][:4]


def _class_bars(results: Sequence[Result], vocabulary: ClassVocabulary) -> str:
    """Scores per class, best class of the first result first; results over other class lists are left out."""
    names, parts = list(vocabulary.names), []
    for key, title in CLASS_BARS.items():
        series = class_series(results, key)
        if not series or results[0].scores["class_names"] != names:
            continue
        first = series[0][1]
        shown = [k for k in range(len(names)) if key == "IoU_per_class" or not all(_missing(values[k]) for _, values in series)]
        order = sorted(shown, key=lambda k: (_missing(first[k]), -(0.0 if _missing(first[k]) else first[k])))
        ordered = [(name, [values[k] for k in order]) for name, values in series]
        drawing = ([names[k] for k in order], ordered, [vocabulary.palette[k] for k in order], f"{title} per class in percent")
        wide, narrow = bar_chart(*drawing), bar_chart(*drawing, width=360)  # a wide one could not be read on a phone
        parts.append(f'<h2>{title} per class, %</h2><div class="card wide">{wide}</div><div class="card narrow">{narrow}</div>')
    return "".join(parts)


def _missing(value: Optional[float]) -> bool:
    return value is None or math.isnan(value)


def training_charts(logs: Sequence[TrainingLog]) -> dict[str, str]:
    """SVG charts under `loss` and `miou` (validation); a chart without values is left out.

    A series has the same colour in both, whatever the order of the logs and of what they hold.
    """
    loss, iou = {}, {}
    names = [log.name for log in logs]
    for number, log in enumerate(logs, 1):
        run = "" if len(logs) == 1 else log.name if names.count(log.name) == 1 else f"{log.name} {number}"
        for key, points in log.curves.items():
            subset, _, metric = key.partition("_")
            if metric == "loss":
                loss[run, subset, ""] = points
            elif metric.startswith("mIoU") and subset != "train":
                iou[run, subset, metric.removeprefix("mIoU").replace("_", " ")] = _fractions(points)
    order = sorted({*loss, *iou}, key=_place)
    charts = {}
    for name, curves, title in (("loss", loss, "loss"), ("miou", iou, "mIoU, %")):
        if curves:
            keys = [key for key in order if key in curves][: len(SERIES_COLOURS)]
            series = [(_legend_text(*key), curves[key]) for key in keys]
            charts[name] = line_chart(series, title, percent=name == "miou", colours=_colours(keys, order))
    return charts


def _place(key: tuple[str, str, str]) -> tuple:
    """Where a series (run, subset, extra) stands in the legends: by run, then training, validation and the others by name."""
    run, subset, extra = key
    return run, [*SUBSETS, subset].index(subset), subset, extra


def _legend_text(run: str, subset: str, extra: str) -> str:
    return f"{run}, {SUBSETS.get(subset, subset)}{extra}" if run else SUBSETS.get(subset, subset) + extra


def _colours(keys: Sequence[tuple], order: Sequence[tuple]) -> list[int]:
    """A colour for each of at most six series of a chart: that of its place among all series, the next free one if it is taken."""
    colours: list[int] = []
    for key in keys:
        free = (k % len(SERIES_COLOURS) for k in range(order.index(key), order.index(key) + len(SERIES_COLOURS)))
        colours.append(next(k for k in free if k not in colours))
    return colours


def _fractions(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """mIoU values 0..1, also when the log holds percentages."""
    scale = 100 if any(value > 1 for _, value in points) else 1
    return [(update, value / scale) for update, value in points]


def _curves(logs: Sequence[TrainingLog]) -> str:
    charts = training_charts(logs)
    cards = "".join(f'<div class="card">{chart}</div>' for chart in charts.values())
    return f'<h2>Training</h2><div class="pair">{cards}</div>' if charts else ""
