"""Class names of Hugging Face datasets: which ClassLabel speaks of pixels."""

import datasets
import pytest

from data_prep.hf_classes import find_class_names
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
    assert find_class_names(tmp_path, datasets.Features(features), "annotation", "") == ("sky", "car")


@pytest.mark.parametrize("scene", [SCENE, {"scene": SCENE}])
def test_a_class_per_photo_does_not_name_pixels(tmp_path, scene):
    with pytest.raises(SourceError, match="none of its features is a ClassLabel of segments or pixels.; give --class-names"):
        find_class_names(tmp_path, {"image": IMAGE, "annotation": IMAGE, "scene_category": scene}, "annotation", "")
    assert find_class_names(tmp_path, {"annotation": IMAGE, "scene": scene}, "annotation", "sky,car") == ("sky", "car")


def test_two_lists_are_not_guessed_between(tmp_path):
    features = {"annotation": IMAGE, "a": datasets.Sequence(PIXELS), "b": datasets.Sequence(SCENE)}
    with pytest.raises(SourceError, match="its features have 2 lists of classes"):
        find_class_names(tmp_path, features, "annotation", "")
