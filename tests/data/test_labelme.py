"""labelme files: shapes become pixels, labels become ids, and each fault names its shape."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from ofaseg.data.codec import CodecError
from ofaseg.data.labelme import read_labelme
from ofaseg.vocabulary import IGNORE_INDEX

NAMES = ("cat", "dog")
SQUARE = [[2, 1], [5, 1], [5, 3], [2, 3]]


def write(tmp_path, *shapes, names=NAMES, **more):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "5.4", "imageHeight": 6, "imageWidth": 9, "imagePath": "a.jpg", "shapes": shapes} | more))
    return read_labelme(path, names)


def shape(label="cat", points=SQUARE, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


def box(y0, y1, x0, x1):
    mask = np.zeros((6, 9), bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def test_a_polygon_covers_its_corners_and_the_rest_has_no_label(tmp_path):
    label_map = write(tmp_path, shape("dog"))
    assert label_map.dtype == np.int32 and label_map.shape == (6, 9)  # height 6: swapped axes would show
    np.testing.assert_array_equal(label_map == 1, box(1, 3, 2, 5))
    assert (label_map[~box(1, 3, 2, 5)] == IGNORE_INDEX).all()


def test_later_shapes_lie_on_top_and_background_fills_the_rest(tmp_path):
    names = ("_background_", "cat", "dog")
    upper = shape("dog", [[8, 4], [4, 2]], "rectangle")
    label_map = write(tmp_path, shape("cat"), upper, shape("__ignore__", [[0, 0], [1, 0]], "rectangle"), names=names)
    np.testing.assert_array_equal(label_map == 2, box(2, 4, 4, 8))
    np.testing.assert_array_equal(label_map == 1, box(1, 3, 2, 5) & ~box(2, 4, 4, 8))
    np.testing.assert_array_equal(label_map == IGNORE_INDEX, box(0, 0, 0, 1))
    assert (label_map == 0).sum() == 6 * 9 - 8 - 15 - 2


def test_circle_and_mask(tmp_path):
    circle = write(tmp_path, shape("cat", [[4, 3], [6, 3]], "circle"))
    assert circle[3, 2] == circle[3, 6] == circle[1, 4] == circle[5, 4] == 0 and circle[1, 2] == IGNORE_INDEX
    patch = np.array([[1, 0], [1, 1], [0, 1]], bool)
    buffer = io.BytesIO()
    Image.fromarray(patch).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    label_map = write(tmp_path, shape("dog", [[7, 2], [8, 4]], "mask", mask=text))
    np.testing.assert_array_equal(label_map[2:5, 7:9] == 1, patch)
    assert (label_map == 1).sum() == patch.sum()
    with pytest.raises(CodecError, match="shape 0: its mask of shape .* leaves the image"):
        write(tmp_path, shape("dog", [[8, 2], [9, 4]], "mask", mask=text))


@pytest.mark.parametrize(
    "fault, message",
    [
        (shape("bird"), "a.json, shape 1: label 'bird' is not in the class list; add it there"),
        (shape(kind="linestrip"), "shape 1 .'cat'.: a linestrip covers no area"),
        (shape(points=[[0, 0], [1, 1]]), "a polygon of 2 points; draw it again"),
        (shape(points=[[0, 0], [1, "x"], [3, 3]]), "shape 1: not as labelme writes it"),
        ({"label": "cat"}, "shape 1: not as labelme writes it"),
        (shape(kind="mask", mask="%%"), "its mask is no base64 PNG"),
    ],
)
def test_faults_name_the_shape(tmp_path, fault, message):
    with pytest.raises(CodecError, match=message):
        write(tmp_path, shape(), fault)


def test_files_of_another_kind(tmp_path):
    with pytest.raises(CodecError, match="imageHeight x imageWidth is None x 9"):
        write(tmp_path, imageHeight=None)
    for text, message in [("{", "not valid JSON"), ("[]", "no labelme annotation"), ('{"categories": []}', "no labelme annotation")]:
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(CodecError, match=f"b.json: {message}"):
            read_labelme(tmp_path / "b.json", NAMES)
    with pytest.raises(FileNotFoundError, match="c.json: annotation not found"):
        read_labelme(tmp_path / "c.json", NAMES)


def test_without_a_class_list_shapes_are_checked_all_the_same(tmp_path):
    assert set(np.unique(write(tmp_path, shape("cat"), shape("bird", [[7, 4], [8, 5]], "rectangle"), names=None))) == {IGNORE_INDEX, 0, 1}
    with pytest.raises(CodecError, match="a line covers no area"):
        write(tmp_path, shape("cat", kind="line"), names=None)
