"""Values of a user's label maps: what they become, kept bytes, and errors that say the option to give."""

import argparse
import io

import numpy as np
import pytest
from PIL import Image

from data_prep.label_values import class_ids, ignore_values, label_map_to_store, listed_names, mark_novel, user_vocabulary
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.vocabulary import IGNORE_INDEX, VocabularyError

NAMES = ("a", "b", "c")


def png(values, mode="L", **options):
    buffer = io.BytesIO()
    image = Image.fromarray(np.array(values, dtype=np.uint8))
    if mode == "P":
        image.putpalette([k % 256 for k in range(768)])
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_no_ignored_value_may_be_a_class():
    with pytest.raises(SourceError, match=r"--ignore 0 is also the label value of a class \(3 classes have 0..2\)"):
        user_vocabulary(NAMES, 0, (255, 0), "test")
    with pytest.raises(VocabularyError, match="ignore label 0 is also the stored value of a class"):
        user_vocabulary(NAMES, 0, (0, 255), "test")


@pytest.mark.parametrize(
    "offset, ignore, stored, expected",
    [
        (0, None, [0, 1, 2, 255], [0, 1, 2, IGNORE_INDEX]),
        (1, (0, 255), [0, 1, 3, 255], [IGNORE_INDEX, 0, 2, IGNORE_INDEX]),
        (5, (9,), [5, 7, 9, 6], [0, 2, IGNORE_INDEX, 1]),
    ],
)
def test_values_become_classes(offset, ignore, stored, expected):
    vocabulary = user_vocabulary(NAMES, offset, ignore, "test")
    assert class_ids(np.array([stored], np.uint8), vocabulary, ignore or (), "f").tolist() == [expected]
    kept = label_map_to_store(png([stored]), vocabulary, ignore or (), "f")
    decoded = codec.decode_label_map(kept, vocabulary) if isinstance(kept, bytes) else kept
    assert decoded.tolist() == [expected]


def test_bytes_are_kept_unless_a_value_has_to_change():
    vocabulary = user_vocabulary(NAMES, 1, (0, 255), "test")
    for data in (png([[0, 1, 3]]), png([[0, 1, 3]], "P"), png([[0, 1, 3]], "P", bits=2)):
        assert label_map_to_store(data, vocabulary, (0, 255), "f") == data
    changed = label_map_to_store(png([[0, 1, 255]]), vocabulary, (0, 255), "f")
    assert changed.tolist() == [[IGNORE_INDEX, 0, IGNORE_INDEX]]
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 1, 3]], np.uint8)).save(buffer, "BMP")
    assert label_map_to_store(buffer.getvalue(), vocabulary, (0,), "f").tolist() == [[IGNORE_INDEX, 0, 2]]


@pytest.mark.parametrize(
    "offset, ignore, value, message",
    [
        (0, None, 3, r"3 \(first at x 1, y 0\) is no class; 3 classes have 0..2. .*--label-offset 1"),
        (1, None, 0, "If 0 means no label, give --ignore 0,255"),
        (0, (9,), 255, "If 255 means no label, give --ignore 9,255"),
        (0, None, 77, "Name every class in the class list"),
    ],
)
def test_a_value_that_is_no_class_says_the_option(offset, ignore, value, message):
    vocabulary = user_vocabulary(NAMES, offset, ignore, "test")
    with pytest.raises(SourceError, match=f"^f.png: label value .*{message}"):
        class_ids(np.array([[offset, value]], np.uint8), vocabulary, ignore or (), "f.png")


def test_pictures_that_hold_no_ids():
    vocabulary = user_vocabulary(NAMES, 0, None, "test")
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(buffer, "JPEG")
    colours = png(np.zeros((2, 3, 3), np.uint8))
    for data, message in [(buffer.getvalue(), "is a JPEG"), (colours, "mode RGB"), (b"", "no image bytes"), (colours[:40], "f: ")]:
        with pytest.raises(SourceError, match=message):
            label_map_to_store(data, vocabulary, (), "f")


def test_options_that_do_not_fit():
    assert ignore_values("0, 255") == (0, 255)
    for text in ("x", "-1", "70000", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a comma list"):
            ignore_values(text)
    with pytest.raises(SourceError, match="--label-offset -1 is negative"):
        user_vocabulary(NAMES, -1, None, "test")
    with pytest.raises(VocabularyError, match="ignore label 1 is also the stored value of a class"):
        user_vocabulary(NAMES, 0, (1,), "test")


def test_novel_classes_are_marked_by_name():
    vocabulary = user_vocabulary(NAMES, 0, None, "test")
    assert mark_novel(vocabulary, "c, a").novel == (True, False, True)
    assert mark_novel(vocabulary, "") is vocabulary


@pytest.mark.parametrize("novel, message", [("b, dog", "'dog' is no class of test; the classes are a, b, c"), ("a,b,c", "leave some")])
def test_novel_classes_that_are_not_there(novel, message):
    with pytest.raises(SourceError, match=message):
        mark_novel(user_vocabulary(NAMES, 0, None, "test"), novel)


def test_a_blank_line_among_names_is_refused_where_their_order_counts(tmp_path):
    (tmp_path / "names.txt").write_text("cat\n\ndog\n\n")
    with pytest.raises(VocabularyError, match="names.txt: line 2 is blank.*remove it, or write the name"):
        listed_names(str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    assert listed_names(str(tmp_path / "names.txt")) == listed_names("cat, dog") == ("cat", "dog"), "blank lines at the end mean nothing"
