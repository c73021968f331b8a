"""Pictures and charts: right pixels, right size, valid XML."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from ofaseg.evaluation import charts, pictures
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

VOCABULARY = ClassVocabulary(names=("grass & <moss>", "sky", "cat"), palette=((0, 200, 0), (0, 0, 255), (250, 120, 0)))
IMAGE = np.full((6, 8, 3), 100, dtype=np.uint8)
LABELS = np.zeros((6, 8), dtype=np.int32)
LABELS[:2], LABELS[5, 7] = 1, IGNORE_INDEX


def test_overlay_mixes_colours_and_darkens_unlabelled_pixels():
    mixed = pictures.overlay(IMAGE, LABELS, VOCABULARY.palette, alpha=0.5, outline=False)
    assert mixed[4, 0].tolist() == [50, 150, 50] and mixed[0, 0].tolist() == [50, 50, 178]
    assert mixed[5, 7].tolist() == [45, 45, 45]
    outlined = pictures.overlay(IMAGE, LABELS, VOCABULARY.palette)
    assert outlined[1, 3].tolist() == [255, 255, 255] and outlined[3, 3].tolist() != [255, 255, 255]
    with pytest.raises(ValueError, match="differ in size"):
        pictures.overlay(IMAGE, LABELS[:3], VOCABULARY.palette)


def test_errors_are_red_and_unlabelled_pixels_dark():
    prediction = LABELS.copy()
    prediction[0, 0], prediction[5, 7] = 2, 2
    drawn, share = pictures.error_overlay(IMAGE, LABELS, prediction)
    assert share == pytest.approx(1 / 47)
    red, green, blue = drawn[0, 0].tolist()
    assert red > 150 and green < 80 and blue < 100
    assert drawn[3, 3].tolist() == [100, 100, 100] and drawn[5, 7].tolist() == [45, 45, 45]
    assert pictures.error_overlay(IMAGE, np.full((6, 8), IGNORE_INDEX), prediction)[1] == 0


@pytest.mark.parametrize("num_classes, mode", [(3, "P"), (255, "P"), (256, "I;16"), (1000, "I;16")])
def test_index_png_holds_the_class_ids(tmp_path, num_classes, mode):
    label_map = np.array([[0, 1], [num_classes - 1, IGNORE_INDEX]])
    palette = [(k % 256, 0, 0) for k in range(num_classes)]
    pictures.write(tmp_path / "x.png", pictures.index_png(label_map, palette))
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == mode
        assert np.asarray(picture)[1, 0] == num_classes - 1
    assert pictures.read_index_png(tmp_path / "x.png").tolist() == label_map.tolist()


def test_areas_are_sorted_and_leave_out_absent_classes():
    areas = pictures.class_areas(LABELS, VOCABULARY)
    assert [(a["name"], a["pixels"]) for a in areas] == [("grass & <moss>", 31), ("sky", 16)]
    assert areas[1]["percent"] == pytest.approx(100 * 16 / 48, abs=1e-3)


def test_small_pictures_are_enlarged_and_the_legend_fits():
    drawn = pictures.overlay_with_legend(IMAGE, LABELS, VOCABULARY, min_side=60)
    assert drawn.width >= 80 and drawn.height > 60
    strip = pictures.overlay_with_legend(np.zeros((3, 2000, 3), np.uint8), np.zeros((3, 2000), np.int64), VOCABULARY)
    assert strip.width == 8000, "not enlarged until three pixels are 320"
    assert pictures.with_legend(IMAGE, []).height == 6
    many = pictures.with_legend(np.zeros((50, 300, 3), np.uint8), [(f"class {k}", (k, 0, 0)) for k in range(40)])
    assert many.width == 300 and many.height > 150
    other_script = pictures.with_legend(IMAGE, [("猫", (0, 0, 0)), ("Straßenbahn", (9, 9, 9))])
    assert other_script.width > 8


def test_shrink_keeps_photo_and_labels_together():
    image, (label_map,) = pictures.shrink(np.zeros((40, 80, 3), np.uint8), [np.repeat([[0, 1]], 40, 0).repeat(40, 1)], 20)
    assert image.shape == (10, 20, 3) and label_map.shape == (10, 20)
    assert label_map[:, :10].max() == 0 and label_map[:, 10:].min() == 1


def test_comparison_has_one_panel_per_map():
    drawn = pictures.comparison(IMAGE, {"photo": None, "labels": LABELS, "prediction": LABELS}, VOCABULARY, min_side=60)
    assert drawn.width == 3 * 80 + 2 * 8 and drawn.height > 60


@pytest.mark.parametrize("num_classes", [1, 15, 60, 171])
def test_charts_are_valid_xml_with_a_description(num_classes):
    names = [f"class <{k}> & co" for k in range(num_classes)]
    values = [None if k == 2 else k / num_classes for k in range(num_classes)]
    for series in ([("a", values)], [("a", values), ("b", values)]):
        svg = charts.bar_chart(names, series, [(1, 2, 3)] * num_classes, "IoU")
        assert "class <0>" in ET.fromstring(svg).get("aria-label")
        assert ET.fromstring(charts.standalone(svg)).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("points", [[(1, 2.0)], [(0, 0.0), (5, 0.0)], [(1, -3.0), (2, 1e5)], [(1, 1e-6), (9, 2e-6)]])
def test_line_charts_of_odd_ranges(points):
    root = ET.fromstring(charts.line_chart([("a", points), ("empty", [])], "loss"))
    for circle in root.iter("circle"):
        assert 0 <= float(circle.get("cx")) <= 470 and 0 <= float(circle.get("cy")) <= 270
    assert "no values" in charts.line_chart([], "loss")


def test_long_curves_are_thinned_but_keep_their_ends():
    points = [(float(k), float(k)) for k in range(10000)]
    thinned = charts.thin(points)
    assert len(thinned) <= 303 and thinned[0] == points[0] and thinned[-1] == points[-1]
