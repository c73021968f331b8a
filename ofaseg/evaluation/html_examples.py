"""Examples of a report: each photo with its label map, predictions and errors laid over it, two of them parted by a slider.

Without scripts, and on paper, the same pictures stand side by side.
"""

import base64
from dataclasses import dataclass, field
from html import escape
from typing import Optional, Sequence

import numpy as np
from PIL import Image

from ofaseg.evaluation.html_page import chips
from ofaseg.evaluation.pictures import class_areas, encode, enlarge, error_overlay, overlay, shrink
from ofaseg.evaluation.report import percent
from ofaseg.vocabulary import ClassVocabulary

TITLES = {"best": "Best photos", "worst": "Worst photos", "random": "Random photos", "": "Photos"}
"""Group of an example -> heading. A photo of several groups is shown in the first and named under the others."""

LONG_SIDE, SHORT_SIDE = 560, 240
"""Pictures are shrunk, or enlarged by a whole factor, to these sides in pixels."""

EXAMPLES_CSS = """
.examples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,235px),1fr));gap:16px;align-items:start}
.example h4{font-size:13.5px;font-weight:600;margin:0 0 8px;display:flex;justify-content:space-between;flex-wrap:wrap;gap:0 10px}
.example h4 span{overflow-wrap:anywhere}
.example h4 .muted{font-weight:400;white-space:nowrap}
.layers{display:grid;grid-template-columns:repeat(auto-fit,minmax(120px,1fr));gap:8px}
.layers figure{margin:0}
.layers img{width:100%;height:auto;display:block;border-radius:8px}
figcaption{font-size:12.5px;color:var(--muted);padding:3px 2px 0;overflow-wrap:anywhere}
.controls{display:none;margin-top:8px;gap:6px;font-size:12.5px}
.controls input{width:100%;margin:2px 0;accent-color:var(--s0)}
.controls label{display:grid;grid-template-columns:34px minmax(0,1fr);align-items:center;color:var(--muted)}
.controls select{font:inherit;color:var(--fg);background:var(--bg);border:1px solid var(--line);border-radius:6px}
.controls select{padding:3px 4px;width:100%;text-overflow:ellipsis}
@media screen{
.ready .controls{display:grid}
.ready .layers{display:block;position:relative;cursor:ew-resize;touch-action:pan-y;border-radius:8px;overflow:hidden}
.ready figure{position:absolute;inset:0;visibility:hidden}
.ready figure:first-child{position:relative}
.ready figcaption{display:none}
.ready .left{visibility:visible;clip-path:inset(0 calc(100% - var(--x)) 0 0)}
.ready .right{visibility:visible;clip-path:inset(0 0 0 var(--x))}
.ready .left.right{clip-path:none}
.ready .layers::after{content:"";position:absolute;inset:0 auto 0 var(--x);width:2px;margin-left:-1px;background:#fff;
box-shadow:0 0 3px #000;pointer-events:none}
}
@media print{.example{break-inside:avoid}}
"""

EXAMPLES_SCRIPT = """
(() => {
  const wanted = /(?:^|[#&])slider=(\\d+)/.exec(location.hash);
  for (const example of document.querySelectorAll(".example")) {
    const layers = example.querySelector(".layers"), figures = [...layers.children];
    const slider = example.querySelector("input"), [left, right] = example.querySelectorAll("select");
    const show = () => {
      figures.forEach((figure, k) => {
        figure.classList.toggle("left", k === Number(left.value));
        figure.classList.toggle("right", k === Number(right.value));
      });
      layers.style.setProperty("--x", slider.value + "%");
      const names = [left, right].map((select) => select.selectedOptions[0].text);
      slider.setAttribute("aria-valuetext", `${slider.value} % ${names[0]}, the rest ${names[1]}`);
    };
    const drag = (event) => {
      const box = layers.getBoundingClientRect();
      slider.value = 100 * (event.clientX - box.left) / box.width;
      show();
    };
    layers.addEventListener("pointerdown", (event) => { layers.setPointerCapture(event.pointerId); drag(event); });
    layers.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
    for (const control of [slider, left, right]) control.addEventListener("input", show);
    if (wanted) slider.value = wanted[1];
    example.classList.add("ready");
    show();
  }
})();
"""
"""The part after `#slider=` in the address sets all sliders, in percent."""


@dataclass
class Example:
    """One photo with its label map and the label maps predicted for it.

    Attributes:
        name: id of the photo.
        image: (H, W, 3) uint8.
        truth: (H, W) class ids or IGNORE_INDEX, or None.
        predictions: result name -> (H, W) class ids.
        groups: those of TITLES that it belongs to.
        miou: of the first prediction on this photo, 0..1, or None.
        drawn: title -> (H, W, 3) uint8 picture of the whole photo, of segments; at any size.
    """

    name: str
    image: np.ndarray
    truth: Optional[np.ndarray] = None
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    miou: Optional[float] = None
    drawn: dict[str, np.ndarray] = field(default_factory=dict)


def examples_section(examples: Sequence[Example], vocabulary: ClassVocabulary) -> str:
    """HTML of the examples by group with one legend; "" without any. Needs EXAMPLES_CSS and EXAMPLES_SCRIPT in the page."""
    if not examples:
        return ""
    maps = [m for e in examples for m in (e.truth, *e.predictions.values()) if m is not None]
    present = sorted({area["class_id"] for m in maps for area in class_areas(m, vocabulary)})
    parts = ["<h2>Examples</h2>", chips(vocabulary, present)]
    grouped = any(example.groups for example in examples)
    shown: set[int] = set()
    for group, title in TITLES.items():
        members = [k for k, example in enumerate(examples) if (group in example.groups if group else not example.groups)]
        if members:
            parts.append(f"<h3>{title}</h3>" if grouped else "")
            parts.append(_shown_above([examples[k].name for k in members if k in shown]))
            cards = "".join(_card(examples[k], vocabulary) for k in members if k not in shown)
            parts.append(f'<div class="examples">{cards}</div>' if cards else "")
            shown.update(members)
    return "".join(parts)


def _shown_above(names: Sequence[str]) -> str:
    return f'<p class="muted">Shown above: {escape(", ".join(names))}</p>' if names else ""


def _card(example: Example, vocabulary: ClassVocabulary) -> str:
    layers = _layers(example, vocabulary)
    figures = "".join(_figure(picture, title, alt) for title, picture, alt in layers)
    told = [" + ".join(example.groups)] if len(example.groups) > 1 else []
    told += [f"mIoU {percent(example.miou)} %"] if example.miou is not None else []
    score = f'<span class="muted">{", ".join(map(escape, told))}</span>' if told else ""
    has_truth = example.truth is not None
    prediction = min(1 + has_truth, len(layers) - 1)  # after the photo and the labels
    return (
        f'<article class="example card"><h4><span>{escape(example.name)}</span>{score}</h4><div class="layers">{figures}</div>'
        f'<div class="controls"><input type="range" min="0" max="100" value="50" aria-label="Border between the two pictures">'
        f"{_select('left', layers, 0)}{_select('right', layers, prediction)}</div></article>"
    )


def _select(side: str, layers, chosen: int) -> str:
    options = "".join(
        f'<option value="{k}"{" selected" if k == chosen else ""}>{escape(title)}</option>' for k, (title, _, _) in enumerate(layers)
    )
    return f"<label>{side}<select>{options}</select></label>"


def _layers(example: Example, vocabulary: ClassVocabulary) -> list[tuple[str, np.ndarray, str]]:
    """(title, (H, W, 3) picture, spoken description) of the photo and everything laid over it, all of one size."""
    titles = [name or "prediction" for name in example.predictions]
    image, label_maps = shrink(example.image, [example.truth, *example.predictions.values()], LONG_SIDE)
    image, (truth, *predictions) = enlarge(image, label_maps, SHORT_SIDE)
    layers = [("photo", image, f"Photo {example.name}")]
    for title, label_map in zip(["labels", *titles], [truth, *predictions]):
        if label_map is not None:
            areas = ", ".join(f"{area['name']} {area['percent']:.0f} %" for area in class_areas(label_map, vocabulary)[:6])
            layers.append((title, overlay(image, label_map, vocabulary.palette), f"{title} of {example.name}: {areas or 'no class'}"))
    if truth is not None and predictions:
        wrong, share = error_overlay(image, truth, predictions[0])
        alt = f"Errors of {titles[0]} on {example.name}: {100 * share:.0f} % of the labelled pixels"
        layers.append((f"errors of {titles[0]}", wrong, alt))
    height, width = image.shape[:2]
    for title, picture in example.drawn.items():
        picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
        layers.append((title, picture, f"{title} of {example.name}"))
    return layers


def _figure(picture: np.ndarray, caption: str, alt: str) -> str:
    height, width = picture.shape[:2]
    source = f'src="{data_uri(picture)}" width="{width}" height="{height}"'
    return f'<figure><img {source} alt="{escape(alt, quote=True)}" draggable="false"><figcaption>{escape(caption)}</figcaption></figure>'


def data_uri(picture: np.ndarray, quality: int = 82) -> str:
    """A (H, W, 3) uint8 picture as a JPEG inside an address, for `src`."""
    return "data:image/jpeg;base64," + base64.b64encode(encode(picture, "JPEG", quality=quality)).decode()
