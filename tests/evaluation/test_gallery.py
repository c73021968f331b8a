"""The pages of a gallery: cards in order, links, the class index, and the filter in a browser."""

import json
import re

import numpy as np

from ofaseg.evaluation.gallery import Card, page_name, write_gallery
from tests.browser import open_page, requires_chromium
from tests.evaluation.test_pictures import IMAGE, LABELS, VOCABULARY

BOX = {"box": [1.0, 2.0, 5.0, 4.0], "text": "a <cat>", "class_id": 2}


def cards():
    """Two pages of split a (2 + 1 rows), one of split b."""
    yield Card("one", "a.tsv, row 0", IMAGE, LABELS, ["a <photo>"], [BOX])
    yield Card("two", "a.tsv, row 1", IMAGE, np.ones_like(LABELS))
    yield Card("three", "a.tsv, row 2", problem="a.tsv, row 2, column image: broken <b>; write it again")
    yield Card("four", "b.tsv, row 0", IMAGE, None)


def write(out):
    return write_gallery(out, "My & data", VOCABULARY, [("a", 3), ("b", 1)], cards(), per_page=2)


def index(out):
    return json.loads((out / "classes.js").read_text().removeprefix("window.galleryClasses = ").rstrip(";\n"))


def test_pages_hold_the_rows_of_one_split_in_order(tmp_path):
    pages = write(tmp_path)
    assert [path.name for path in pages] == ["index.html", "page-002.html", "page-003.html"]
    names = [re.findall(r"<h2><span>([^<]+)<", path.read_text()) for path in pages]
    assert names == [["one", "two"], ["three"], ["four"]]
    for path in pages:
        page = path.read_text()
        assert not re.search(r"https?://|url\(|@import", page) and "<photo>" not in page and "<cat>" not in page and "<b>" not in page
        targets = {name for name in re.findall(r'(?:href|src)="([^"#]+)', page) if not name.startswith("data:")}
        assert targets <= {path.name for path in pages} | {"classes.js"}
    first = pages[0].read_text()
    assert first.count("<img") == 4 and 'href="page-003.html">split b' in first and "My &amp; data" in first
    assert 'viewBox="0 0 8 6"' in first and 'x="1" y="2" width="4" height="2"' in first and "stroke:rgb(250, 120, 0)" in first


def test_the_index_tells_where_a_class_occurs(tmp_path):
    write(tmp_path)
    assert index(tmp_path) == {"0": [[1, 1]], "1": [[1, 2]], "2": [[1, 1]], "bad": [[2, 1]]}


def test_bad_rows_are_red_cards_with_their_reason(tmp_path):
    page = write(tmp_path)[1].read_text()
    assert 'class="row card bad" data-classes="bad"' in page and "broken &lt;b&gt;; write it again" in page


def test_pages_of_a_longer_gallery_are_taken_away(tmp_path):
    write(tmp_path)
    (tmp_path / "page-005.html").write_text("not ours: a gap before it")
    write_gallery(tmp_path, "short", VOCABULARY, [("a", 1)], cards(), per_page=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.js", "index.html", "page-005.html"]


def test_cards_are_drawn_page_by_page(tmp_path):
    def watched():
        for number, card in enumerate(cards()):
            if number == 2:
                assert (tmp_path / "index.html").exists()
            yield card

    write_gallery(tmp_path, "x", VOCABULARY, [("a", 3), ("b", 1)], watched(), per_page=2)
    assert page_name(1) == "index.html" and page_name(1234) == "page-1234.html"


@requires_chromium
def test_the_filter_hides_rows_and_leads_to_other_pages(tmp_path):
    write(tmp_path)
    everything = open_page(tmp_path / "index.html")
    assert 'hidden=""' not in everything
    grass = open_page(tmp_path / "index.html", "#class=0")
    assert 'data-classes="0 1 2">' in grass and 'data-classes="1" hidden="">' in grass and "1 here, 1 in the gallery" in grass
    bad = open_page(tmp_path / "index.html", "#class=bad")
    assert bad.count('hidden=""') == 2 and 'href="page-002.html#class=bad"' in bad
