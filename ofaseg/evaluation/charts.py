"""Bar and line charts as SVG text: readable on light and dark ground, each with a spoken description."""

import math
from html import escape
from typing import Optional, Sequence

SERIES_COLOURS = ("var(--s0)", "var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)")

LIGHT = "--fg:#1f2430;--muted:#667085;--line:#e3e6ec;--track:#f0f2f6;"
LIGHT += "--s0:#2563a8;--s1:#d9722e;--s2:#3a8f5c;--s3:#9a4fb0;--s4:#b8903a;--s5:#5d6b82;"
DARK = "--fg:#e8eaf0;--muted:#9aa3b5;--line:#343a46;--track:#262b35;"
DARK += "--s0:#6ea8e8;--s1:#f0995c;--s2:#6cc28e;--s3:#c98ada;--s4:#dbbb6a;--s5:#9aa8c0;"

CHART_CSS = (
    "svg.chart text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--fg)}"
    "svg.chart .muted{fill:var(--muted)}svg.chart .small{font-size:12px}svg.chart .strong{font-weight:600}"
    "svg.chart .grid{stroke:var(--line);stroke-width:1}svg.chart .axis{stroke:var(--muted);stroke-width:1}"
    "svg.chart .track{fill:var(--track)}svg.chart .curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
)


def standalone(svg: str) -> str:
    """The same chart as a file of its own: with its colours, and a ground that follows the viewer's light or dark setting."""
    style = f"<style>svg{{{LIGHT}background:#fff}}@media(prefers-color-scheme:dark){{svg{{{DARK}background:#171a21}}}}{CHART_CSS}</style>"
    head, rest = svg.split(">", 1)
    return head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1) + ">" + style + rest + "\n"


def bar_chart(
    names: Sequence[str],
    series: Sequence[tuple[str, Sequence[Optional[float]]]],
    swatches: Sequence[tuple[int, int, int]] = (),
    title: str = "",
    width: float = 0,
) -> str:
    """Horizontal bars per class, in the order given; one thin bar per series; values 0..1 shown in percent.

    Args:
        names: K class names.
        series: at most six (name, K values); None or nan is shown as a dash.
        swatches: K RGB colours of the classes in the overlays; may be empty.
        title: what the chart shows; begins its spoken description.
        width: of the drawing, in one column; 0 is that of a page, in as many columns as the classes need.
    """
    columns = 1 if width or len(names) <= 36 else 2 if len(names) <= 90 else 3
    per_column = math.ceil(len(names) / columns)
    bar, row = (12, 24) if len(series) == 1 else (8, 14 * len(series) + 8)
    column_width = width or (960 if columns > 1 else 860) / columns
    label_width = min(220, 0.46 * column_width, 36 + 8 * max((len(name) for name in names), default=0))
    bar_width = column_width - label_width - 62
    parts, top = [], 6
    if len(series) > 1:
        legend, lines = _legend([name for name, _ in series], 0 if width else label_width, column_width * columns)
        parts, top = [legend], 10 + 20 * lines
    for k, name in enumerate(names):
        x, y = column_width * (k // per_column), top + row * (k % per_column)
        parts.append(_bar_label(name, swatches[k] if swatches else None, x, y + row / 2, label_width))
        for s, (series_name, values) in enumerate(series):
            offset = (row - bar) / 2 if len(series) == 1 else 7 + 14 * s
            colour = SERIES_COLOURS[s % len(SERIES_COLOURS)]
            parts.append(_bar(name, series_name, values[k], (x + label_width, y + offset), (bar_width, bar), colour, len(series) == 1))
    height = top + row * per_column + 6
    return svg_element(column_width * columns, height, parts, f"{title}. " + _spoken_bars(names, series))


def _bar_label(name: str, swatch, x: float, middle: float, width: float) -> str:
    shown = name if 36 + 8 * len(name) <= width else name[: max(1, int((width - 44) / 8))] + "…"
    text = f'<text x="{x + width - 28:.1f}" y="{middle:.1f}" text-anchor="end" dominant-baseline="central">{escape(shown)}</text>'
    if swatch is None:
        return text
    colour = "#{:02x}{:02x}{:02x}".format(*swatch)
    return text + f'<rect x="{x + width - 21:.1f}" y="{middle - 6:.1f}" width="12" height="12" rx="3" fill="{colour}"/>'


def _bar(name: str, series_name: str, value: Optional[float], corner, size, colour: str, strong: bool) -> str:
    (x, y), (width, height) = corner, size
    missing = value is None or math.isnan(value)
    shown = "–" if missing else f"{100 * value:.1f}"
    filled = 0 if missing else max(0.0, min(1.0, value)) * width
    css = "" if strong else ' class="small"'
    title = "" if strong else f"{series_name}, "
    return (
        f"<g><title>{escape(f'{title}{name}: {shown}')}</title>"
        f'<rect class="track" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="3"/>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{filled:.1f}" height="{height}" rx="3" fill="{colour}"/>'
        f'<text{css} x="{x + width + 8:.1f}" y="{y + height / 2:.1f}" dominant-baseline="central">{shown}</text></g>'
    )


def _spoken_bars(names, series) -> str:
    shown = [
        f"{series_name}: "
        + ", ".join(f"{n} {'undefined' if v is None or math.isnan(v) else f'{100 * v:.0f}'}" for n, v in zip(names, values))
        for series_name, values in series
    ]
    return "; ".join(shown)


def line_chart(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    title: str,
    x_label: str = "updates",
    percent: bool = False,
    width: int = 470,
    colours: Sequence[int] = (),
) -> str:
    """Curves over updates with axes, a legend, and a dot where a curve has few points.

    Args:
        series: at most six (name, ascending list of (x, y)), finite values.
        title: heading of the chart.
        percent: y values 0..1 are shown in percent, from 0.
        width: of the drawing; its height is 270.
        colours: number in SERIES_COLOURS of each series; by default in their order.
    """
    paint = {name: SERIES_COLOURS[k % len(SERIES_COLOURS)] for (name, _), k in zip(series, colours or range(len(series)))}
    series = [(name, [(x, 100 * y if percent else y) for x, y in points]) for name, points in series if points]
    if not series:
        text = f'<text class="muted" x="8" y="34">{escape(title)}: no values in the log</text>'
        return svg_element(width, 60, [text], f"{title}: no values")
    height, left, right, top, bottom = 270, 46, 14, 58, 40
    xs, ys = [x for _, p in series for x, _ in p], [y for _, p in series for _, y in p]
    x_ticks, y_ticks = _ticks(0, max(xs), 5), _ticks(0 if percent or min(ys) < 0.5 * max(ys) else min(ys), max(ys), 4)
    x_low, x_high, y_low, y_high = (
        0,
        max(max(xs), x_ticks[-1] if len(x_ticks) == 1 else 0, 1e-9),
        y_ticks[0],
        max(y_ticks[-1], y_ticks[0] + 1e-9),
    )

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / (x_high - x_low) * (width - left - right),
            height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom),
        )

    parts = [
        f'<text class="strong" x="0" y="14">{escape(title)}</text>',
        f'<g transform="translate(0,22)">{_legend([n for n, _ in series], 0, colours=[paint[n] for n, _ in series])[0]}</g>',
    ]
    for tick in y_ticks:
        y = at(0, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="muted small" x="{left - 8}" y="{y:.1f}" text-anchor="end" dominant-baseline="central">{_short(tick)}</text>'
        )
    for tick in x_ticks:
        x = at(tick, 0)[0]
        parts.append(f'<text class="muted small" x="{x:.1f}" y="{height - bottom + 17}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}"/>')
    parts.append(f'<text class="muted small" x="{width - right}" y="{height - 6}" text-anchor="end">{escape(x_label)}</text>')
    parts += [_curve(name, [at(x, y) for x, y in thin(points)], paint[name], points[-1]) for name, points in series]
    spoken = "; ".join(f"{name} from {_short(points[0][1])} to {_short(points[-1][1])}" for name, points in series)
    return svg_element(width, height, parts, f"{title} over {x_label}: {spoken}")


def _curve(name: str, points: list[tuple[float, float]], colour: str, last: tuple[float, float]) -> str:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    title = escape(f"{name}: {_short(last[1])} after {_short(last[0])}")
    drawn = f'<g><title>{title}</title><polyline class="curve" points="{line}" style="stroke:{colour}"/>'
    dots = points if len(points) <= 12 else points[-1:]
    return drawn + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{colour}"/>' for x, y in dots) + "</g>"


def thin(points: Sequence[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """At most about `most` points: means over consecutive groups; the first and the last point stay."""
    if len(points) <= most:
        return list(points)
    step = math.ceil(len(points) / most)
    groups = [points[i : i + step] for i in range(1, len(points) - 1, step)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [points[0], *means, points[-1]]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that enclose low..high."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    magnitude = 10 ** math.floor(math.log10(span / count))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def _short(value: float) -> str:
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def _legend(names: Sequence[str], left: float, right: float = math.inf, colours: Sequence[str] = SERIES_COLOURS) -> tuple[str, int]:
    """The names with their colours from x = `left`, in as many lines of height 20 as they need to end before `right`; (SVG, lines)."""
    parts, x, line = [], left, 0
    for name, colour in zip(names, colours):
        advance = 34 + 7 * len(name)
        if x > left and x + advance > right:
            x, line = left, line + 1
        parts.append(f'<rect x="{x:.1f}" y="{6 + 20 * line}" width="12" height="12" rx="3" style="fill:{colour}"/>')
        middle = 12.5 + 20 * line
        parts.append(f'<text class="small" x="{x + 17:.1f}" y="{middle}" dominant-baseline="central">{escape(name)}</text>')
        x += advance
    return "".join(parts), line + 1


def svg_element(width: float, height: float, parts: Sequence[str], description: str) -> str:
    """A drawing as wide as the page allows, with its spoken description."""
    body = f"<desc>{escape(description)}</desc>" + "".join(parts)
    return (
        f'<svg class="chart" role="img" aria-label="{escape(description, quote=True)}" viewBox="0 0 {width:.0f} {height:.0f}">{body}</svg>'
    )
