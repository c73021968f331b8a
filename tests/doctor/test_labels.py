import numpy as np
import pytest

from ofaseg.doctor.labels import LabelTally, diagnose, maybe_shifted
from ofaseg.vocabulary import ClassVocabulary

NAMES = tuple(f"name {chr(97 + k)}" for k in range(6))


def tally(*maps) -> LabelTally:
    """A tally of maps given as lists of their values."""
    result = LabelTally()
    for k, values in enumerate(maps):
        result.add(np.array([values], np.uint16 if max(values) > 255 else np.uint8), ("train.tsv", k))
    return result


def codes(*maps, **options) -> list[str]:
    return [item.code for item in diagnose(tally(*maps), ClassVocabulary(NAMES, **options), "train.tsv")]


def test_values_are_counted_with_their_first_place():
    first, second = tally([0, 0, 3]), LabelTally()
    second.add(np.array([[3, 255]], np.uint8), ("train.tsv", 1))
    first.merge(second)
    assert first.maps == 2 and sorted(first.values) == [0, 3, 255]
    assert (first.values[3].pixels, first.values[3].maps, first.values[3].place) == (2, 2, ("train.tsv", 0))
    assert first.values[255].place == ("train.tsv", 1)


@pytest.mark.parametrize(
    "maps, options, expected",
    [
        ([[0, 1, 2, 3, 4, 5]], {}, []),
        ([[0, 1, 2, 3, 4, 5, 255]], {}, []),
        ([[1, 2, 3, 4, 5, 6, 0]], {"label_offset": 1, "ignore_label": 0}, []),
        ([[1, 2, 3, 4, 5, 6, 255]], {"label_offset": 1, "ignore_label": 0}, []),
        ([[0, 1, 2, 3]], {}, ["unused_class"]),
        ([[0, 1, 2, 3, 4, 5, 6]], {}, ["reduce_zero_label"]),
        ([[0, 1, 6, 255]], {}, ["reduce_zero_label"]),
        ([[1, 2, 6]], {}, ["class_count"]),
        ([[0, 1, 2, 3, 4, 5, 255]], {"label_offset": 1, "ignore_label": 0}, ["reduce_zero_label"]),
        ([[0, 1, 2, 6]], {"label_offset": 1, "ignore_label": 255}, ["reduce_zero_label"]),
        ([[0, 1, 5, 255]], {"ignore_label": 200}, ["ignore_value"]),
        ([[0, 1, 65535]], {}, ["ignore_value"]),
        ([[0, 1, 11]], {}, ["class_count"]),
        ([[0, 50, 100]], {}, ["stretched_labels"]),
        ([[0, 255]], {"ignore_label": 99}, ["stretched_labels"]),
        ([[255, 255], [255]], {}, ["labels_empty"]),
        ([[0, 255], [0, 0]], {}, ["stretched_labels"]),
        ([[0, 255]], {"label_offset": 1, "ignore_label": 0}, ["stretched_labels"]),
        ([[0, 0], [0]], {}, ["one_class"]),
        ([[3, 3], [3, 255]], {}, ["one_class"]),
        ([], {}, []),
    ],
)
def test_diagnosis(maps, options, expected):
    assert codes(*maps, **options) == expected


@pytest.mark.parametrize(
    "maps, options, doubtful",
    [
        ([[0, 1, 2], [0, 3], [0, 4]], {}, True),
        ([[0, 1, 2], [0, 3]], {}, False),  # too few maps
        ([[0, 1, 2], [0, 3], [1, 4]], {}, False),  # 0 is not everywhere
        ([[0, 1, 255], [0, 3], [0, 4]], {}, False),  # something else is no label
        ([[0, 1, 2], [0, 3], [0, 5]], {}, False),  # the last class occurs
        ([[0, 1, 2], [0, 3], [0, 6]], {}, False),  # more values than names: another finding
        ([[0, 1, 2], [0, 3], [0, 4]], {"label_offset": 1, "ignore_label": 0}, False),
        ([[0, 1], [0, 1], [0]], {}, False),  # a class and the rest
    ],
)
def test_a_0_everywhere_is_doubtful(maps, options, doubtful):
    found = maybe_shifted(tally(*maps), ClassVocabulary(NAMES, **options), "train.tsv")
    assert [item.code for item in found] == (["maybe_shifted"] if doubtful else [])
    assert maybe_shifted(tally(*maps), ClassVocabulary(("background", *NAMES[1:]), **options), "train.tsv") == []


def test_the_finding_names_values_and_the_first_place():
    (item,) = diagnose(tally([0, 1], [0, 6, 5]), ClassVocabulary(NAMES), "train.tsv")
    assert (item.file, item.row, item.column) == ("train.tsv", 1, "label_map")
    assert item.message == "2 maps hold 0, 1, 5, 6; 6 classes are stored as 0..5"
