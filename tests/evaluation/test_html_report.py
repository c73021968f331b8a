"""The report's page: complete, escaped, without anything from elsewhere; readable at 171 classes."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from ofaseg.evaluation.data_summary import DataSummary, SplitSummary
from ofaseg.evaluation.html_confusion import confusion_section, heat_map
from ofaseg.evaluation.html_examples import Example, examples_section
from ofaseg.evaluation.html_report import Result, html_report, training_charts
from ofaseg.evaluation.semantic import semantic_scores
from ofaseg.evaluation.training_log import TrainingLog
from tests.browser import open_page, requires_chromium
from tests.evaluation.test_pictures import IMAGE, LABELS, VOCABULARY


def log():
    return TrainingLog("run", {"train_loss": [(k, 3.0 / k) for k in range(1, 2000)], "valid_mIoU": [(10, 20.0), (20, 30.0)]})


def full_page():
    matrix = torch.tensor([[5, 3, 0], [0, 4, 0], [0, 0, 2]])
    scores = semantic_scores(matrix, VOCABULARY) | {"images": 1}
    results = [Result("adapted <b>", scores, matrix.numpy()), Result("before", scores)]
    example = Example("photo <1>", IMAGE, LABELS, {"adapted <b>": LABELS, "before": LABELS}, ("worst",), 0.25)
    data = DataSummary("shards", "a <source>", list(VOCABULARY.names), [SplitSummary("val", 7, "6 x 8", 2, [0.25, 0.75, 0.0], [1, 5, 0])])
    configuration = [("run", {"model": {"_name": "segofa_<nano>"}})]
    return html_report("Title & more", results, VOCABULARY, [example], [log()], "One.\n\nTwo <i>.", "command", configuration, [data])


def test_the_page_stands_alone_and_escapes_names():
    page = full_page()
    assert not re.search(r"(?:src|href)=(?!\"data:)|url\(|https?://|@import|fetch\(|XMLHttp", page)
    assert "grass &amp; &lt;moss&gt;" in page
    for text in ("Two <i>.", "<moss>", "<source>", "segofa_<", "adapted <b>", "photo <1>"):
        assert text not in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 5 and all(re.search(r'alt="[^"]+"', image) for image in images)
    assert page.count("<svg") == 7 and set(training_charts([log()])) == {"loss", "miou"}
    assert "Worst photos" in page and "Best photos" not in page and "mIoU 25.0 %" in page
    empty = html_report("Empty", [], VOCABULARY)
    assert empty.startswith("<!doctype html>") and "<script" not in empty


def test_the_data_summary_tells_shares_and_what_was_left_out():
    page = full_page()
    assert "sky</td><td>75.0</td><td>5</td>" in page and "<td>val</td><td>7</td><td>6 x 8</td><td>2</td>" in page


def test_an_example_offers_its_layers_and_starts_with_photo_and_prediction():
    section = examples_section([Example("x", IMAGE, LABELS, {"mine": LABELS})], VOCABULARY)
    options = re.findall(r'<option value="(\d)"( selected)?>([^<]+)<', section)
    assert [name for _, _, name in options] == ["photo", "labels", "mine", "errors of mine"] * 2
    assert [name for _, selected, name in options if selected] == ["photo", "mine"]
    assert 'type="range"' in section and "Errors of mine on x: 0 % of the labelled pixels" in section
    without_labels = examples_section([Example("x", IMAGE, None, {"mine": LABELS})], VOCABULARY)
    assert re.findall(r"selected>([^<]+)<", without_labels) == ["photo", "mine"]
    alone = examples_section([Example("x", IMAGE)], VOCABULARY)
    assert re.findall(r"selected>([^<]+)<", alone) == ["photo", "photo"]


def test_a_photo_of_several_groups_has_one_card_and_is_named_under_each():
    examples = [
        Example("a&b", IMAGE, LABELS, groups=("best", "random"), miou=0.5),
        Example("c", IMAGE, LABELS, groups=("best",)),
        Example("d", IMAGE, LABELS, groups=("worst",)),
        Example("e", IMAGE, LABELS, groups=("random",)),
    ]
    section = examples_section(examples, VOCABULARY)
    best, worst, random = section.split("<h3>")[1:]
    assert [part.split("</h3>")[0] for part in (best, worst, random)] == ["Best photos", "Worst photos", "Random photos"]
    assert [part.count("<article") for part in (best, worst, random)] == [2, 1, 1]
    assert "best + random, mIoU 50.0 %" in best and "Shown above: a&amp;b</p>" in random and "Shown above" not in best + worst
    few = examples_section([Example("x", IMAGE, LABELS, groups=("best", "worst", "random"))], VOCABULARY)
    assert few.count("<article") == 1 and few.count("Shown above: x</p>") == 2 and "Random photos" in few
    assert "<h3>" not in examples_section([Example("x", IMAGE, LABELS)], VOCABULARY)


def test_the_heat_map_leaves_out_what_cannot_be_seen():
    matrix = np.array([[1000, 4, 0], [0, 300, 700], [0, 0, 0]])
    root = ET.fromstring(heat_map(matrix, ["a & b", "c", "d"]))
    drawing = next(svg for svg in root.iter("svg") if svg.get("aria-label"))
    titles = [title.text for title in drawing.iter("title")]
    assert titles == ["a & b → a & b: 99.6 % (1,000 pixels)", "c → c: 30.0 % (300 pixels)", "c → d: 70.0 % (700 pixels)"]
    assert "c as d 70 %" in drawing.get("aria-label")
    corners = {rect.get("class"): (float(rect.get("x")), float(rect.get("y"))) for rect in drawing.iter("rect")}
    assert corners["wrong"][0] > corners["wrong"][1]  # label 1 below, prediction 2 to the right


@pytest.mark.parametrize("count", [1, 20, 58, 81, 171])
def test_names_beside_the_heat_map_stand_at_their_cells_and_do_not_overlap(count):
    names = [f"a class with a long name {k}" for k in range(count)]
    root = ET.fromstring(heat_map(np.eye(count, dtype=np.int64), names))
    strips = {div.get("class"): div for div in root.iter("div")}
    middles = [float(text.get("y")) for text in strips["heat-rows"].iter("text")]
    cells = [rect for rect in root.iter("rect") if rect.get("class") == "right"]
    cell = float(cells[0].get("width")) + 1
    assert middles == [float(rect.get("y")) + cell / 2 for rect in cells]
    starts = [re.match(r"translate\(([\d.]+) ", text.get("transform")) for text in strips["heat-columns"].iter("text")]
    assert [float(start[1]) for start in starts] == [float(rect.get("x")) + cell / 2 for rect in cells]
    letters = 9 if strips["heat-rows"].find(".//text").get("class") == "tiny" else 12
    assert len(middles) == count and cell > letters
    sizes = {svg.get("viewBox") == f"0 0 {svg.get('width')} {svg.get('height')}" for svg in root.iter("svg")}
    assert sizes == {True}  # drawn at its own size, so 171 classes scroll instead of shrinking
    width = sum(float(strips[f"heat-{kind}"].find("svg").get("width")) for kind in ("rows", "columns"))
    assert (width <= 998) == (count <= 81)  # what a wide screen has room for


def test_the_list_of_confusions_names_label_and_prediction():
    section = confusion_section(np.array([[6, 2], [9, 1]]), ["x <y>", "z"])
    assert re.search(r"z → <b>x &lt;y&gt;</b></span><span>90.0 % of the label, 50.00 % of all", section)
    assert "Confused most, by pixels" not in confusion_section(np.diag([1, 2]), ["x", "z"])


def colours_of(svg: str) -> dict[str, str]:
    """Series -> colour of its entry in the legend; each curve must have that colour."""
    root = ET.fromstring(svg)
    entries = [(rect.get("style"), text.text) for rect, text in zip(root.iter("rect"), root.findall("./g/text"))]
    drawn = [group for group in root.iter("g") if group.find("polyline") is not None]
    curves = {group.find("title").text.split(":")[0]: group.find("polyline").get("style") for group in drawn}
    found = {name: re.search(r"--s\d", style)[0] for style, name in entries}
    assert {name: re.search(r"--s\d", style)[0] for name, style in curves.items()} == found
    return found


def test_a_series_keeps_its_colour_whatever_the_order_of_the_logs():
    points = [(1.0, 0.5), (2.0, 0.25)]
    a = TrainingLog("a", {"train_loss": points, "valid_loss": points, "valid_mIoU": points})
    b = TrainingLog("b", {"valid_mIoU": points, "valid_loss": points, "train_loss": points})
    charts = training_charts([a])
    assert colours_of(charts["loss"]) == {"training": "--s0", "validation": "--s1"}
    assert colours_of(charts["miou"]) == {"validation": "--s1"}
    assert training_charts([TrainingLog("a", dict(reversed(a.curves.items())))]) == charts
    both = training_charts([a, b])
    assert training_charts([b, a]) == both and len(set(colours_of(both["loss"]).values())) == 4
    assert colours_of(both["miou"]).items() <= colours_of(both["loss"]).items()


def test_curves_of_one_chart_differ_in_colour_where_there_are_many():
    points = [(1.0, 0.5), (2.0, 0.25)]
    curves = {f"valid_mIoU{extra}": points for extra in ("", "_unseen", "_seen")}
    logs = [TrainingLog(name, {"train_loss": points, "valid_loss": points, **curves}) for name in ("a", "b", "b")]
    for chart in training_charts(logs).values():
        assert len(set(colours_of(chart).values())) == 6
    assert {"b 2, training", "b 3, training"} <= set(colours_of(training_charts(logs)["loss"]))


def test_bars_have_a_drawing_for_narrow_screens_with_the_same_numbers():
    page = full_page()
    wide, narrow = (re.search(f'<div class="card {name}">(<svg.*?</svg>)', page)[1] for name in ("wide", "narrow"))
    width, _ = map(float, ET.fromstring(narrow).get("viewBox").split()[2:])
    assert width == 360 and re.findall(r"<title>(.*?)</title>", wide) == re.findall(r"<title>(.*?)</title>", narrow)
    ends = [float(text.get("x")) for text in ET.fromstring(narrow).iter("text") if text.get("text-anchor") != "end"]
    assert max(ends) < 360 - 30  # room for a number of four letters


@requires_chromium
def test_a_browser_opens_the_page_without_complaint(tmp_path):
    (tmp_path / "page.html").write_text(full_page(), encoding="utf-8")
    dom = open_page(tmp_path / "page.html", "#slider=80")
    assert 'style="--x: 80%;"' in dom and '<figure class="left">' in dom and '<figure class="right">' in dom
