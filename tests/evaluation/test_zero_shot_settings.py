"""Settings of SimSeg's zero-shot evaluation: the published values, and files that cannot be used."""

import dataclasses
import json

import pytest

from data_prep.prepare import DATASETS, load_dataset_module
from ofaseg.evaluation.zero_shot_settings import SettingsError, ZeroShotSettings, load_settings

NAMES = ("pascal_voc", "pascal_context", "coco_object")
GOOD = {"top_m": 10, "candidates": 5, "std_factor": 1.0, "background_class": 0}


@pytest.mark.parametrize("name, top_m", zip(NAMES, (10, 30, 10), strict=True))
def test_published_values(name, top_m):
    assert load_settings(name) == ZeroShotSettings(top_m=top_m, candidates=5, std_factor=1.0, background_class=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_settings(name).top_m = 3


@pytest.mark.parametrize("name", NAMES)
def test_they_fit_the_converters_classes(name):
    """The background of the settings is the one of the converter of that name, and the threshold has enough classes."""
    assert name in DATASETS
    vocabulary, settings = load_dataset_module(name).vocabulary(), load_settings(name)
    assert vocabulary.names[settings.background_class] == "background" and settings.top_m < len(vocabulary)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SettingsError, match="no zero-shot settings named 'coco_stuff' .*it has pascal_voc, pascal_context, coco_object$"):
        load_settings("coco_stuff")


@pytest.mark.parametrize("background_class", [None, 3])
def test_own_files(tmp_path, background_class):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"mine": GOOD | {"top_m": 7, "std_factor": 0, "background_class": background_class}}))
    assert load_settings("mine", path) == ZeroShotSettings(7, 5, 0, background_class)


@pytest.mark.parametrize(
    "entry, message",
    [
        (3, "own.json, mine: expected the keys top_m, candidates, std_factor, background_class"),
        ({"top_m": 10}, "expected the keys"),
        (GOOD | {"more": 1}, "expected the keys"),
        (GOOD | {"top_m": 1}, "top_m is 1, outside its range"),
        (GOOD | {"top_m": "10"}, "top_m is '10'"),
        (GOOD | {"candidates": 11}, "candidates is 11"),
        (GOOD | {"candidates": True}, "candidates is True"),
        (GOOD | {"std_factor": -1.0}, "std_factor is -1.0"),
        (GOOD | {"std_factor": float("nan")}, "std_factor is nan"),
        (GOOD | {"background_class": -1}, "background_class is -1"),
        (GOOD | {"background_class": 0.0}, "background_class is 0.0"),
    ],
)
def test_values_outside_their_range_are_named(tmp_path, entry, message):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"mine": entry}))
    with pytest.raises(SettingsError, match=message):
        load_settings("mine", path)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_files_that_cannot_be_used(tmp_path, text):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match="own.json"):
        load_settings("mine", path)
    with pytest.raises(SettingsError, match="absent.json"):
        load_settings("mine", tmp_path / "absent.json")
