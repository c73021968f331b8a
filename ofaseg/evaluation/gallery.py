"""A gallery of the rows of shards: static pages of cards, to be opened from the disk, with a filter by class.

A page is written as soon as its cards are known, so a gallery of any length needs the memory of one page. `classes.js` is
written last: it tells every page on which pages a class occurs.
"""

import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Iterable, Optional, Sequence

import numpy as np

from ofaseg.evaluation.html_examples import data_uri
from ofaseg.evaluation.html_page import html_page, swatch
from ofaseg.evaluation.pictures import class_areas, overlay, shrink
from ofaseg.evaluation.report import write_text
from ofaseg.vocabulary import ClassVocabulary

THUMBNAIL_SIDE = 320
"""Long side of a thumbnail at most, pixels."""

GALLERY_CSS = """
main{max-width:1400px}
nav,.filter{display:flex;flex-wrap:wrap;gap:8px 14px;align-items:center;margin:14px 0}
nav a,nav span,.filter select,.filter button{padding:4px 12px;border:1px solid var(--line);border-radius:8px;background:var(--card)}
nav a{color:var(--s0);text-decoration:none}
nav span{color:var(--muted)}
.filter select,.filter button{font:inherit;color:var(--fg)}
a{color:var(--s0)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:16px;align-items:start}
.row h2{font-size:14px;margin:0 0 8px;overflow-wrap:anywhere;display:flex;justify-content:space-between;gap:10px}
.row h2 .muted{font-weight:400;white-space:nowrap}
.row[hidden]{display:none}
.row .panels{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(0,1fr);gap:8px}
.row .photo{position:relative}
.row img{width:100%;height:auto;display:block;border-radius:6px}
.row svg{position:absolute;inset:0;width:100%;height:100%}
.row rect{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}
.row rect.shadow{stroke:#000;stroke-width:4;stroke-opacity:.55}
.row ul.chips{margin:8px 0 0;gap:3px 10px}
.row p{font-size:13px;margin:8px 0 0;overflow-wrap:anywhere}
.row.bad{border:2px solid var(--bad)}
.row.bad p{color:var(--bad)}
"""

GALLERY_SCRIPT = """
(() => {
  const select = document.querySelector(".filter select"), told = document.querySelector(".filter output");
  if (!select) return;
  const page = Number(document.body.querySelector("main").lastElementChild.dataset.page);
  const address = (number) => (number === 1 ? "index.html" : `page-${String(number).padStart(3, "0")}.html`);
  const pagesOf = (value) => ((window.galleryClasses || {})[value] || []);
  const link = (number, text, value) => {
    const a = document.createElement("a");
    a.href = `${address(number)}#class=${value}`;
    a.textContent = text;
    return a;
  };
  const show = () => {
    const value = select.value;
    let shown = 0;
    for (const row of document.querySelectorAll(".row")) {
      row.hidden = value !== "" && !row.dataset.classes.split(" ").includes(value);
      shown += row.hidden ? 0 : 1;
    }
    told.replaceChildren();
    if (value === "") return;
    const pages = pagesOf(value), total = pages.reduce((sum, [, count]) => sum + count, 0);
    told.append(`${shown} here, ${total} in the gallery `);
    const before = pages.filter(([number]) => number < page).pop(), after = pages.find(([number]) => number > page);
    if (before) told.append(link(before[0], "previous page with it", value), " ");
    if (after) told.append(link(after[0], "next page with it", value));
  };
  const read = () => {
    const found = /[#&]class=([\\w]+)/.exec(location.hash);
    select.value = found && [...select.options].some((option) => option.value === found[1]) ? found[1] : "";
    show();
  };
  select.addEventListener("change", () => {
    history.replaceState(null, "", select.value === "" ? "#" : `#class=${select.value}`);
    show();
  });
  addEventListener("hashchange", read);
  read();
})();
"""


@dataclass
class Card:
    """One row.

    Attributes:
        name: its id.
        place: "<file>, row <n>".
        image: (H, W, 3) uint8, None for a row that cannot be read.
        label_map: (H, W) class ids or IGNORE_INDEX, or None.
        captions: sentences about the photo.
        boxes: dicts of box [x0, y0, x1, y1] in pixels, text, class_id (or None).
        problem: why the row cannot be read; "" for a good row.
    """

    name: str
    place: str = ""
    image: Optional[np.ndarray] = None
    label_map: Optional[np.ndarray] = None
    captions: Sequence[str] = ()
    boxes: Sequence[dict] = ()
    problem: str = ""


@dataclass
class _Gallery:
    """What the pages of one gallery share."""

    title: str
    vocabulary: Optional[ClassVocabulary]
    pages: list[tuple[str, int]]
    found: dict[str, list[list[int]]] = field(default_factory=dict)


def page_name(number: int) -> str:
    """File name of page `number`, from 1."""
    return "index.html" if number == 1 else f"page-{number:03d}.html"


def write_gallery(
    out, title: str, vocabulary: Optional[ClassVocabulary], splits: Sequence[tuple[str, int]], cards: Iterable[Card], per_page: int
) -> list[Path]:
    """Writes index.html, page-002.html ... and classes.js into `out`; returns the pages.

    Args:
        title: heading of every page.
        vocabulary: classes of the label maps and boxes, None without labels.
        splits: (name, number of cards) in order; a page holds cards of one split.
        cards: the cards of all splits in that order; they are drawn one page at a time.
        per_page: cards on a page at most.
    """
    plan = [(split, min(per_page, count - start)) for split, count in splits for start in range(0, count, per_page)]
    gallery = _Gallery(title, vocabulary, plan)
    cards, out, written = iter(cards), Path(out), []
    for number, (_, count) in enumerate(plan, 1):
        bodies = [_card(next(cards), gallery, number) for _ in range(count)]
        written.append(out / page_name(number))
        write_text(written[-1], _page(gallery, number, bodies))
    write_text(out / "classes.js", f"window.galleryClasses = {json.dumps(gallery.found, separators=(',', ':'))};\n")
    _remove_later_pages(out, len(plan))
    return written


def _remove_later_pages(out: Path, last: int) -> None:
    """Takes away the pages that an earlier, longer gallery left."""
    number = last + 1
    while (out / page_name(number)).exists():
        (out / page_name(number)).unlink()
        number += 1


def _page(gallery: _Gallery, number: int, bodies: list[str]) -> str:
    split = gallery.pages[number - 1][0]
    heading = f"<h1>{escape(gallery.title)}</h1><p>Split {escape(split)}, page {number} of {len(gallery.pages)}</p>"
    cards = f'<div class="cards" data-page="{number}">{"".join(bodies)}</div>'
    page = html_page(f"{gallery.title}, page {number}", [heading, _navigation(gallery, number), _filter(gallery), cards], GALLERY_CSS)
    # a file beside the page: which pages hold a class is known when the last one has been drawn
    return page.replace("</body>", f'<script src="classes.js"></script>\n<script>{GALLERY_SCRIPT}</script>\n</body>')


def _navigation(gallery: _Gallery, number: int) -> str:
    """Links to the pages beside this one, and to the first page of each split."""
    links = [_link(number - 1, "previous") if number > 1 else "<span>previous</span>"]
    links.append(_link(number + 1, "next") if number < len(gallery.pages) else "<span>next</span>")
    firsts: dict[str, int] = {}
    for k, (split, _) in enumerate(gallery.pages, 1):
        firsts.setdefault(split, k)
    links += [_link(k, f"split {split}") for split, k in firsts.items()] if len(firsts) > 1 else []
    links.append(_link(len(gallery.pages), "last"))
    return f'<nav aria-label="Pages">{"".join(links)}</nav>'


def _link(number: int, text: str) -> str:
    return f'<a href="{page_name(number)}">{escape(text)}</a>'


def _filter(gallery: _Gallery) -> str:
    """A choice of class, or of the rows that cannot be read; and the legend."""
    names = gallery.vocabulary.names if gallery.vocabulary else ()
    options = "".join(f'<option value="{k}">{escape(name)}</option>' for k, name in enumerate(names))
    choice = f'<select><option value="">all rows</option>{options}<option value="bad">rows that cannot be read</option></select>'
    form = f'<div class="filter"><label>Show {choice}</label><output class="muted"></output></div>'
    if not names:
        return form
    items = "".join(
        f'<li>{swatch(gallery.vocabulary, k)}<a href="#class={k}">{escape(name)}</a></li>' for k, name in enumerate(names)
    )
    legend = f'<ul class="chips" aria-label="Colours of the classes">{items}</ul>'
    return form + (legend if len(names) <= 40 else f"<details><summary>Legend of {len(names)} classes</summary>{legend}</details>")


def _card(card: Card, gallery: _Gallery, number: int) -> str:
    """HTML of a card; notes in the gallery's index that page `number` holds its classes."""
    classes = ["bad"] if card.problem else [str(k) for k in _classes(card, gallery.vocabulary)]
    for key in classes:
        pages = gallery.found.setdefault(key, [])
        if not pages or pages[-1][0] != number:
            pages.append([number, 0])
        pages[-1][1] += 1
    size = "" if card.image is None else f"{card.image.shape[0]} x {card.image.shape[1]}"
    title = f'<h2><span>{escape(card.name)}</span><span class="muted">{size}</span></h2>'
    css = "row card bad" if card.problem else "row card"
    body = f"<p>{escape(card.problem)}</p>"
    if not card.problem:
        body = _pictures(card, gallery.vocabulary) + _words(card, gallery.vocabulary) + f'<p class="muted">{escape(card.place)}</p>'
    return f'<article class="{css}" data-classes="{" ".join(classes)}">{title}{body}</article>'


def _classes(card: Card, vocabulary: Optional[ClassVocabulary]) -> list[int]:
    """Classes of the label map and the boxes, ascending."""
    found = {box["class_id"] for box in card.boxes if box.get("class_id") is not None}
    if card.label_map is not None and vocabulary is not None:
        found |= {area["class_id"] for area in class_areas(card.label_map, vocabulary)}
    return sorted(found)


def _pictures(card: Card, vocabulary: Optional[ClassVocabulary]) -> str:
    image, (label_map,) = shrink(card.image, [card.label_map], THUMBNAIL_SIDE)
    panels = f'<div class="photo">{_image(image, f"Photo {card.name}")}{_boxes(card, vocabulary)}</div>'
    if label_map is not None and vocabulary is not None:
        areas = ", ".join(f"{area['name']} {area['percent']:.0f} %" for area in class_areas(label_map, vocabulary)[:8])
        panels += _image(overlay(image, label_map, vocabulary.palette), f"Label map of {card.name}: {areas or 'no class'}")
    return f'<div class="panels">{panels}</div>'


def _image(picture: np.ndarray, alt: str) -> str:
    height, width = picture.shape[:2]
    return f'<img src="{data_uri(picture)}" width="{width}" height="{height}" alt="{escape(alt, quote=True)}" loading="lazy">'


def _boxes(card: Card, vocabulary: Optional[ClassVocabulary]) -> str:
    """The boxes over the photo; a pointer on one shows its words."""
    if not card.boxes:
        return ""
    height, width = card.image.shape[:2]
    parts = []
    for box in card.boxes:
        x0, y0, x1, y1 = box["box"]
        place = f'x="{x0:g}" y="{y0:g}" width="{max(0, x1 - x0):g}" height="{max(0, y1 - y0):g}"'
        class_id = box.get("class_id")
        known = vocabulary is not None and class_id is not None and 0 <= class_id < len(vocabulary)
        colour = f"rgb{tuple(vocabulary.palette[class_id])}" if known else "#fff"
        name = box.get("text") or (vocabulary.names[class_id] if known else "")
        title = f"<title>{escape(name)}</title>"
        parts.append(f'<g pointer-events="all">{title}<rect class="shadow" {place}/><rect style="stroke:{colour}" {place}/></g>')
    return f'<svg viewBox="0 0 {width} {height}" aria-label="{len(card.boxes)} boxes" role="img">{"".join(parts)}</svg>'


def _words(card: Card, vocabulary: Optional[ClassVocabulary]) -> str:
    """Captions, the words of the boxes, and the classes of the label map with their share."""
    parts = []
    if card.label_map is not None and vocabulary is not None:
        areas = class_areas(card.label_map, vocabulary)
        items = "".join(
            f"<li>{swatch(vocabulary, area['class_id'])}{escape(area['name'])} {area['percent']:.0f} %</li>" for area in areas[:12]
        )
        more = f"<li>and {len(areas) - 12} more</li>" if len(areas) > 12 else ""
        parts.append(f'<ul class="chips">{items}{more}</ul>' if areas else "<p>no labelled pixel</p>")
    parts += [f"<p>{escape(caption)}</p>" for caption in card.captions[:5]]
    phrases = list(dict.fromkeys(box["text"] for box in card.boxes if box.get("text")))
    if phrases:
        parts.append(f'<p class="muted">Boxes: {escape(", ".join(phrases[:12]))}</p>')
    return "".join(parts)
