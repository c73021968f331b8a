"""Class names of Hugging Face datasets: which ClassLabel speaks of pixels."""

import json

import datasets
import pytest

from data_prep.hf_classes import find_classes
from data_prep.source import SourceError

SCENE = datasets.ClassLabel(names=["airport", "alley", "beach"])
PIXELS = datasets.ClassLabel(names=["sky", "car"])
IMAGE = datasets.Image()


@pytest.mark.parametrize(
    "features",
    [
        {"annotation": IMAGE, "scene": SCENE, "objects": datasets.Sequence(PIXELS)},
        {"annotation": IMAGE, "scene": SCENE, "segments": [{"category": PIXELS, "id": datasets.Value("int64")}]},
        {"annotation": datasets.Sequence(datasets.Sequence(PIXELS)), "tags": datasets.Sequence(SCENE)},
    ],
)
def test_names_of_segments_and_pixels(tmp_path, features):
    assert find_classes(tmp_path, datasets.Features(features), "annotation", "", None) == (("sky", "car"), 0)


@pytest.mark.parametrize("scene", [SCENE, {"scene": SCENE}])
def test_a_class_per_photo_does_not_name_pixels(tmp_path, scene):
    with pytest.raises(SourceError, match="none of its features is a ClassLabel of segments or pixels.; give --class-names"):
        find_classes(tmp_path, {"image": IMAGE, "annotation": IMAGE, "scene_category": scene}, "annotation", "", None)
    assert find_classes(tmp_path, {"annotation": IMAGE, "scene": scene}, "annotation", "sky,car", 1) == (("sky", "car"), 1)


def test_two_lists_are_not_guessed_between(tmp_path):
    features = {"annotation": IMAGE, "a": datasets.Sequence(PIXELS), "b": datasets.Sequence(SCENE)}
    with pytest.raises(SourceError, match="its features have 2 lists of classes"):
        find_classes(tmp_path, features, "annotation", "", None)


@pytest.mark.parametrize("first, given, offset", [(0, None, 0), (1, None, 1), (1, 1, 1), (0, 1, 1), (0, 0, 0)])
def test_the_first_number_of_id2label_is_the_first_label_value(tmp_path, first, given, offset):
    (tmp_path / "id2label.json").write_text(json.dumps({str(first + k): name for k, name in enumerate(("sky", "car"))}))
    assert find_classes(tmp_path, {}, "annotation", "", given) == (("sky", "car"), offset)


@pytest.mark.parametrize("given", [0, 2])
def test_an_offset_that_id2label_contradicts(tmp_path, given):
    (tmp_path / "id2label.json").write_text('{"1": "sky", "2": "car"}')
    with pytest.raises(SourceError, match=f"first class has the label value 1; leave out --label-offset {given}"):
        find_classes(tmp_path, {}, "annotation", "", given)
