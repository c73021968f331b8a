"""The frame of every HTML page: no script, font, picture or style from elsewhere, for light and dark screens."""

from html import escape
from typing import Sequence

from ofaseg.evaluation.charts import CHART_CSS, DARK, LIGHT
from ofaseg.vocabulary import ClassVocabulary

PAGE_CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:27px;line-height:1.25;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:18px;margin:44px 0 12px}
h3{font-size:15px;margin:24px 0 8px}
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
.chips i,.chips-cell i{display:inline-block;width:13px;height:13px;border-radius:3px;border:1px solid rgba(128,128,128,.5);flex:none}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--track);border-radius:8px;padding:12px;font-size:12.5px}
summary{cursor:pointer;color:var(--muted)}
.facts{display:grid;grid-template-columns:minmax(150px,max-content) 1fr;gap:4px 20px;margin:0 0 12px}
.facts dt{color:var(--muted)}
.facts dd{margin:0;overflow-wrap:anywhere}
.chips-cell i{vertical-align:-2px;margin-right:4px}
table.options td{padding:3px 10px;text-align:left;font-size:13px;white-space:normal;overflow-wrap:anywhere}
:focus-visible{outline:2px solid var(--s0);outline-offset:2px}
.narrow{display:none}
@media screen and (max-width:640px){main{padding:22px 12px 40px}.wide{display:none}.narrow{display:block}}
@media print{.card,.tile{break-inside:avoid}}
"""


def html_page(title: str, sections: Sequence[str], css: str = "", scripts: Sequence[str] = ()) -> str:
    """The page as text.

    Args:
        title: plain text of the window's title; the heading is the caller's.
        sections: HTML, empty ones are left out.
        css: rules beside those of every page.
        scripts: inline scripts, run after the sections exist.
    """
    colours = f":root{{color-scheme:light dark;--bg:#f7f8fa;--card:#fff;--bad:#b42318;{LIGHT}}}"
    colours += f"@media(prefers-color-scheme:dark){{:root{{--bg:#12151b;--card:#1a1e26;--bad:#ff8a7a;{DARK}}}}}"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += '<link rel="icon" href="data:,">'  # a browser would ask the server for one
    head += f"<title>{escape(title)}</title><style>{colours}{PAGE_CSS}{CHART_CSS}{css}</style>"
    body = "\n".join(section for section in sections if section)
    code = "".join(f"<script>{script}</script>\n" for script in scripts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main>\n{code}</body></html>\n'


def swatch(vocabulary: ClassVocabulary, class_id: int) -> str:
    """A small square in the colour of a class."""
    return f'<i style="background:rgb{tuple(vocabulary.palette[class_id])}"></i>'


def chips(vocabulary: ClassVocabulary, class_ids: Sequence[int]) -> str:
    """A legend: colour and name of each class given."""
    items = "".join(f"<li>{swatch(vocabulary, k)}{escape(vocabulary.names[k])}</li>" for k in class_ids)
    return f'<ul class="chips" aria-label="Colours of the classes">{items}</ul>'
