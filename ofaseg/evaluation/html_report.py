"""One self-contained HTML page about one or more evaluations: no script, no font and no picture from elsewhere."""

import base64
import math
from dataclasses import dataclass, field
from html import escape
from typing import Optional, Sequence

import numpy as np

from ofaseg.evaluation.charts import CHART_CSS, DARK, LIGHT, bar_chart, line_chart
from ofaseg.evaluation.pictures import class_areas, encode, enlarge, overlay, shrink
from ofaseg.evaluation.report import columns_with_values, percent, row_title, score_cell, with_constant
from ofaseg.evaluation.training_log import TrainingLog
from ofaseg.vocabulary import ClassVocabulary

PAGE_CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:27px;line-height:1.25;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:18px;margin:44px 0 12px}
p{max-width:70ch;margin:6px 0}
.muted{color:var(--muted)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}
.tile b{display:block;font-size:28px;line-height:1.2;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:8px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--muted);font-weight:500}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:190px}
tr.first td{font-weight:600}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:16px}
svg.chart{width:100%;height:auto;display:block}
.chips{display:flex;flex-wrap:wrap;gap:6px 14px;margin:0 0 16px;padding:0;list-style:none}
.chips li{display:flex;align-items:center;gap:6px;font-size:13px}
.chips i{width:13px;height:13px;border-radius:3px;border:1px solid rgba(128,128,128,.5);flex:none}
.example{margin:0 0 18px}
.panels{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(0,1fr);gap:8px}
.panels figure{margin:0}
.panels img{width:100%;height:auto;display:block;border-radius:8px}
figcaption{font-size:12.5px;color:var(--muted);padding:3px 2px 0;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--track);border-radius:8px;padding:12px;font-size:12.5px}
summary{cursor:pointer;color:var(--muted)}
@media(max-width:640px){main{padding:22px 12px 40px}.panels{grid-auto-flow:row}}
@media print{.card,.tile,.example{break-inside:avoid}}
"""

SUBSETS = {"train": "training", "valid": "validation"}
"""Subset in a log -> what the legend says."""


@dataclass
class Result:
    """One evaluation: its name in tables, and what `Evaluator.compute` returned."""

    name: str
    scores: dict


@dataclass
class Example:
    """One photo with its label map and the label maps predicted for it.

    Attributes:
        name: id of the photo.
        image: (H, W, 3) uint8.
        truth: (H, W) class ids or IGNORE_INDEX, or None.
        predictions: result name -> (H, W) class ids.
    """

    name: str
    image: np.ndarray
    truth: Optional[np.ndarray] = None
    predictions: dict[str, np.ndarray] = field(default_factory=dict)


def html_report(
    title: str,
    results: Sequence[Result],
    vocabulary: ClassVocabulary,
    examples: Sequence[Example] = (),
    logs: Sequence[TrainingLog] = (),
    notes: str = "",
    details: str = "",
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
    """
    sections = [_heading(title, notes), _tiles(results[0]) if results else "", _result_table(results)]
    sections += [_examples(examples, vocabulary), _class_bars(results, vocabulary), _curves(logs)]
    if details:
        sections.append(f"<h2>Details</h2><details><summary>Commands and settings</summary><pre>{escape(details)}</pre></details>")
    colours = f":root{{color-scheme:light dark;--bg:#f7f8fa;--card:#fff;{LIGHT}}}"
    colours += f"@media(prefers-color-scheme:dark){{:root{{--bg:#12151b;--card:#1a1e26;{DARK}}}}}"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{colours}{PAGE_CSS}{CHART_CSS}</style>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n'
        + "\n".join(s for s in sections if s)
        + "\n</main></body></html>\n"
    )


def _heading(title: str, notes: str) -> str:
    paragraphs = "".join(f"<p>{escape(part.strip())}</p>" for part in notes.split("\n\n") if part.strip())
    return f"<h1>{escape(title)}</h1>{paragraphs}"


def _tiles(result: Result) -> str:
    scores, constant = result.scores, result.scores.get("constant") or {}
    tiles = [("mIoU in %", percent(scores.get("mIoU"))), ("pixels right in %", percent(scores.get("aAcc")))]
    tiles += [
        (f"{title} mIoU", percent(scores[key]))
        for key, title in (("thing_mIoU", "objects"), ("stuff_mIoU", "backgrounds"))
        if key in scores
    ]
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
    columns = columns_with_values([scores for _, scores in rows])
    head = "<tr><th scope=col>%</th>" + "".join(f"<th scope=col>{title}</th>" for _, title in columns) + "<th scope=col>images</th></tr>"
    body = ""
    for i, (name, scores) in enumerate(rows):
        cells = "".join(f"<td>{score_cell(scores, key)}</td>" for key, _ in columns) + f"<td>{escape(str(scores.get('images', '–')))}</td>"
        body += f"<tr{' class=first' if i == 0 else ''}><td>{escape(row_title(name, scores))}</td>{cells}</tr>"
    return f'<h2>Results</h2><div class="card scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _examples(examples: Sequence[Example], vocabulary: ClassVocabulary) -> str:
    if not examples:
        return ""
    maps = [m for e in examples for m in (e.truth, *e.predictions.values()) if m is not None]
    present = sorted({area["class_id"] for m in maps for area in class_areas(m, vocabulary)})
    chips = "".join(f'<li><i style="background:rgb{tuple(vocabulary.palette[k])}"></i>{escape(vocabulary.names[k])}</li>' for k in present)
    body = "".join(_example(example, vocabulary) for example in examples)
    return f'<h2>Examples</h2><ul class="chips" aria-label="Colours of the classes">{chips}</ul>{body}'


def _example(example: Example, vocabulary: ClassVocabulary) -> str:
    label_maps = [example.truth, *example.predictions.values()]
    image, label_maps = shrink(example.image, label_maps, 640)
    image, label_maps = enlarge(image, label_maps, 240)
    names = ["labels", *(name or "prediction" for name in example.predictions)]
    panels = [_panel(image, example.name, f"Photo {example.name}")]
    for name, label_map in zip(names, label_maps):
        if label_map is not None:
            areas = ", ".join(f"{area['name']} {area['percent']:.0f} %" for area in class_areas(label_map, vocabulary)[:6])
            panels.append(_panel(overlay(image, label_map, vocabulary.palette), name, f"{name} of {example.name}: {areas or 'no class'}"))
    return f'<div class="example card"><div class="panels">{"".join(panels)}</div></div>'


def _panel(picture: np.ndarray, caption: str, alt: str) -> str:
    data = base64.b64encode(encode(picture, "JPEG", quality=85)).decode()
    height, width = picture.shape[:2]
    source = f'src="data:image/jpeg;base64,{data}" width="{width}" height="{height}"'
    return f'<figure><img {source} alt="{escape(alt, quote=True)}" loading="lazy"><figcaption>{escape(caption)}</figcaption></figure>'


def _class_bars(results: Sequence[Result], vocabulary: ClassVocabulary) -> str:
    """IoU per class, best class of the first result first; results over other class lists are left out."""
    names = list(vocabulary.names)
    shown = [r for r in results if r.scores.get("class_names") == names][:4]
    if not shown:
        return ""
    first = shown[0].scores["IoU_per_class"]
    order = sorted(range(len(names)), key=lambda k: (_missing(first[k]), -(0.0 if _missing(first[k]) else first[k])))
    series = [(r.name, [r.scores["IoU_per_class"][k] for k in order]) for r in shown]
    chart = bar_chart([names[k] for k in order], series, [vocabulary.palette[k] for k in order], "IoU per class in percent")
    return f'<h2>IoU per class, %</h2><div class="card">{chart}</div>'


def _missing(value: Optional[float]) -> bool:
    return value is None or math.isnan(value)


def training_charts(logs: Sequence[TrainingLog]) -> dict[str, str]:
    """SVG charts under `loss` and `miou` (validation); a chart without values is left out."""
    loss, iou = [], []
    for log in logs:
        run = f"{log.name}, " if len(logs) > 1 else ""
        for key, points in log.curves.items():
            subset, _, metric = key.partition("_")
            if metric == "loss":
                loss.append((run + SUBSETS.get(subset, subset), points))
            elif metric.startswith("mIoU") and subset != "train":
                extra = metric.removeprefix("mIoU").replace("_", " ")
                iou.append((run + SUBSETS.get(subset, subset) + extra, _fractions(points)))
    charts = {"loss": line_chart(loss[:6], "loss")} if loss else {}
    return charts | ({"miou": line_chart(iou[:6], "mIoU, %", percent=True)} if iou else {})


def _fractions(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """mIoU values 0..1, also when the log holds percentages."""
    scale = 100 if any(value > 1 for _, value in points) else 1
    return [(update, value / scale) for update, value in points]


def _curves(logs: Sequence[TrainingLog]) -> str:
    charts = training_charts(logs)
    cards = "".join(f'<div class="card">{chart}</div>' for chart in charts.values())
    return f'<h2>Training</h2><div class="pair">{cards}</div>' if charts else ""
