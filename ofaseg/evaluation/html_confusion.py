"""The confusion matrix of a report: a heat map that can be read at 171 classes, and the list of what is confused most."""

from html import escape
from typing import Sequence

import numpy as np

from ofaseg.evaluation.charts import svg_element
from ofaseg.evaluation.confusion import row_shares, top_confusions
from ofaseg.evaluation.report import percent

SMALLEST_SHARE = 0.005
"""Cells below this share of the label's pixels stay empty: they could not be seen, and most cells of a large matrix are such."""

PAGE_WIDTH = 990
"""Room for the matrix and its names on a wide screen, in pixels."""

LONGEST_NAME = 24
"""Letters of a class name shown beside the matrix."""

CONFUSION_CSS = """
.heat{overflow:auto;max-height:86vh;padding:0}
.heat-grid{display:grid;grid-template-columns:max-content max-content;width:max-content;margin:0 auto}
.heat svg.chart{width:auto}
.heat .tiny{font-size:9px}
.heat-columns,.heat-rows,.heat-corner{position:sticky;background:var(--card)}
.heat-columns{top:0;z-index:1;padding:16px 16px 0 0}.heat-rows{left:0;z-index:1;padding:0 0 16px 16px}
.heat-corner{top:0;left:0;z-index:2}
@media print{.heat{overflow:visible;max-height:none}}
.heat .right{fill:var(--s0)}.heat .wrong{fill:var(--s1)}.heat .ground{fill:var(--track)}
.heat .strong-cell{fill:var(--card)}
.key{display:inline-block;width:12px;height:12px;border-radius:3px;vertical-align:-1px;margin:0 3px 0 10px}
.confused{columns:2 380px;column-gap:28px;margin:0;padding:0;list-style:none;font-size:13.5px;font-variant-numeric:tabular-nums}
.confused li{break-inside:avoid;display:flex;justify-content:space-between;gap:12px;padding:4px 0;border-bottom:1px solid var(--line)}
.confused b{font-weight:600}
"""


def confusion_section(matrix: np.ndarray, names: Sequence[str], title: str = "") -> str:
    """HTML of a (K, K) matrix of pixels, rows are labels, columns predictions. Needs CONFUSION_CSS in the page."""
    of = f" of {escape(title)}" if title else ""
    about = (
        f'<p class="muted">Share of each label\'s pixels{of} (rows) by prediction (columns); a row adds up to 100 %. '
        '<span class="key" style="background:var(--s0)"></span>right<span class="key" style="background:var(--s1)"></span>wrong. '
        f"Cells below {100 * SMALLEST_SHARE:g} % are empty; every cell tells its numbers under the pointer.</p>"
    )
    return (
        f'<h2>Confusion</h2>{about}<div class="card heat" tabindex="0" role="group" aria-label="Confusion matrix">'
        f"{heat_map(matrix, names)}</div>{_confused(matrix, names)}"
    )


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> str:
    """HTML of the row shares: the matrix and the names beside it, which stay in sight where a large matrix has to scroll."""
    count, longest = len(names), min(LONGEST_NAME, max(len(name) for name in names))
    cell, css, margin = _size(count, longest)
    shares = row_shares(matrix)
    side = cell * count
    parts = [f'<rect class="ground" x="0" y="0" width="{side}" height="{side}" rx="3"/>']
    for label, prediction in np.argwhere(shares >= SMALLEST_SHARE).tolist():
        share, pixels = float(shares[label, prediction]), int(matrix[label, prediction])
        words = f"{names[label]} → {names[prediction]}: {percent(share)} % ({pixels:,} pixels)"
        parts.append(_cell((cell * prediction, cell * label), cell, share, label == prediction, words))
    found = [f"{names[c.label]} as {names[c.prediction]} {100 * c.share:.0f} %" for c in top_confusions(matrix, 5)]
    spoken = "Confusion matrix in percent of each label. Confused most: " + ", ".join(found or ["nothing"])
    drawing = svg_element(side, side, parts, spoken).replace("<svg", f'<svg width="{side}" height="{side}"', 1)
    rows = [_name(name, css, margin - 6, cell * (k + 0.5), 'text-anchor="end"') for k, name in enumerate(names)]
    columns = [
        _name(name, css, 0, 0, f'transform="translate({cell * (k + 0.5):.1f} {margin - 6}) rotate(-90)"') for k, name in enumerate(names)
    ]
    strips = _strip("columns", side, margin, columns), _strip("rows", margin, side, rows)
    return f'<div class="heat-grid"><div class="heat-corner"></div>{strips[0]}{strips[1]}<div>{drawing}</div></div>'


def _size(count: int, longest: int) -> tuple[int, str, int]:
    """(cell, class of the names' font, room for the names): the largest that fits a page's width, else the smallest."""
    sizes = [(cell, "small", 16 + round(6.6 * longest)) for cell in (34, 22, 14)]
    sizes.append((10, "tiny", 16 + round(5.2 * longest)))
    return next((size for size in sizes if size[2] + size[0] * count <= PAGE_WIDTH), sizes[-1])


def _name(name: str, css: str, x: float, y: float, place: str) -> str:
    shown = escape(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…")
    return f'<text class="{css}" x="{x}" y="{y:.1f}" dominant-baseline="central" {place}>{shown}</text>'


def _strip(kind: str, width: int, height: int, texts: Sequence[str]) -> str:
    """The names above the columns or left of the rows."""
    head = f'<svg class="chart" aria-hidden="true" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return f'<div class="heat-{kind}">{head}{"".join(texts)}</svg></div>'


def _cell(corner: tuple[float, float], cell: int, share: float, right: bool, words: str) -> str:
    (x, y), kind = corner, "right" if right else "wrong"
    opacity = 0.12 + 0.88 * share**0.7  # small shares must still be seen
    square = f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" rx="2" fill-opacity="{opacity:.2f}"/>'
    text = ""
    if cell >= 30:
        css = "small strong-cell" if opacity > 0.6 else "small"
        place = f'x="{x + cell / 2}" y="{y + cell / 2}" text-anchor="middle" dominant-baseline="central"'
        text = f'<text class="{css}" {place}>{100 * share:.0f}</text>'
    return f"<g><title>{escape(words)}</title>{square}{text}</g>"


def _confused(matrix: np.ndarray, names: Sequence[str]) -> str:
    found = top_confusions(matrix)
    if not found:
        return ""
    total = max(1, int(matrix.sum()))
    rows = "".join(
        f"<li><span>{escape(names[c.label])} → <b>{escape(names[c.prediction])}</b></span>"
        f"<span>{percent(c.share)} % of the label, {100 * c.pixels / total:.2f} % of all</span></li>"
        for c in found
    )
    return f'<h3>Confused most, by pixels (label → prediction)</h3><div class="card"><ul class="confused">{rows}</ul></div>'
