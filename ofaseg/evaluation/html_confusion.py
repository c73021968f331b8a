"""The confusion matrix of a report: a heat map that can be read at 171 classes, and the list of what is confused most."""

from html import escape
from typing import Sequence

import numpy as np

from ofaseg.evaluation.charts import svg_element
from ofaseg.evaluation.confusion import row_shares, top_confusions
from ofaseg.evaluation.report import percent

SMALLEST_SHARE = 0.005
"""Cells below this share of the label's pixels stay empty: they could not be seen, and most cells of a large matrix are such."""

CONFUSION_CSS = """
.heat{overflow:auto;max-height:86vh}
.heat svg.chart{margin:0 auto}
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
    return f'<h2>Confusion</h2>{about}<div class="card heat" tabindex="0" role="group" aria-label="Confusion matrix">' \
        f"{heat_map(matrix, names)}</div>{_confused(matrix, names)}"


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> str:
    """SVG of the row shares, drawn at a fixed size so that a large one scrolls instead of shrinking."""
    count = len(names)
    cell = 34 if count <= 20 else 22 if count <= 40 else 14
    margin = 24 + round(6.6 * min(24, max(len(name) for name in names)))
    shares = row_shares(matrix)
    parts = [f'<rect class="ground" x="{margin}" y="{margin}" width="{cell * count}" height="{cell * count}" rx="3"/>']
    for k, name in enumerate(names):
        parts.append(_labels(name, margin, margin + cell * (k + 0.5)))
    for label, prediction in np.argwhere(shares >= SMALLEST_SHARE).tolist():
        corner = (margin + cell * prediction, margin + cell * label)
        share, pixels = float(shares[label, prediction]), int(matrix[label, prediction])
        words = f"{names[label]} → {names[prediction]}: {percent(share)} % ({pixels:,} pixels)"
        parts.append(_cell(corner, cell, share, label == prediction, words))
    size = margin + cell * count + 8
    found = [f"{names[c.label]} as {names[c.prediction]} {100 * c.share:.0f} %" for c in top_confusions(matrix, 5)]
    drawing = svg_element(size, size, parts, "Confusion matrix in percent of each label. Confused most: " + ", ".join(found or ["nothing"]))
    return drawing.replace("<svg", f'<svg style="width:{size}px;max-width:none"', 1)


def _labels(name: str, margin: float, middle: float) -> str:
    """The name of a class left of its row and above its column."""
    shown = escape(name if len(name) <= 24 else name[:23] + "…")
    side = f'<text class="small" x="{margin - 6}" y="{middle:.1f}" text-anchor="end" dominant-baseline="central">{shown}</text>'
    place = f'transform="translate({middle:.1f} {margin - 6}) rotate(-90)" dominant-baseline="central"'
    return side + f'<text class="small" {place}>{shown}</text>'


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
