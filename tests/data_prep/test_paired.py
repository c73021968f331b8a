"""What converters of paired files share: kept bytes, faults, value tables."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from data_prep import paired
from data_prep.paired import PairSource, find_folder, kept_or_png, look_up, photo_bytes, value_table
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.data.pairs import pair_by_stem
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary
from tests.data_prep.raw_layouts import write_pair, write_photo

VOCABULARY = ClassVocabulary(names=("a", "b"))


class Maps(PairSource):
    def read_label_map(self, path):
        return np.zeros((2, 3), np.int32)


def test_jpeg_and_png_are_kept_and_other_formats_become_png(tmp_path):
    for suffix in (".jpg", ".png"):
        write_photo(tmp_path / f"a{suffix}", 4, 7)
        assert photo_bytes(tmp_path / f"a{suffix}") == (tmp_path / f"a{suffix}").read_bytes()
    write_photo(tmp_path / "a.bmp", 4, 7)
    data = photo_bytes(tmp_path / "a.bmp")
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(codec.decode_image(data), np.asarray(Image.open(tmp_path / "a.bmp")))
    with pytest.raises(SourceError, match="here: not an image that can be read"):
        kept_or_png(b"no picture", "here")
    with pytest.raises(FileNotFoundError, match="b.jpg: photo not found"):
        photo_bytes(tmp_path / "b.jpg")


def test_faults_are_raised_together_or_become_bad_samples(tmp_path):
    write_pair(tmp_path / "i" / "good.jpg", tmp_path / "m" / "good.png", [[0, 1, 0], [1, 0, 1]])
    for k in range(7):
        write_photo(tmp_path / "i" / f"lone{k}.jpg", 2, 3)
    pairing = pair_by_stem(tmp_path / "i", tmp_path / "m")
    with pytest.raises(SourceError, match=re.compile("lone0.jpg: photo without.*lone4.jpg.*and 2 more.*--on-bad-sample skip", re.DOTALL)):
        Maps(VOCABULARY, pairing)
    source = Maps(VOCABULARY, pairing, on_bad_sample="skip")
    assert len(source) == 8 and source[0]["id"] == "good"
    assert source.name(7).endswith("lone6.jpg") and source.files(0) == (str(tmp_path / "i" / "good.jpg"), str(tmp_path / "m" / "good.png"))
    with pytest.raises(SourceError, match="lone6.jpg: photo without a label map"):
        source[7]
    with pytest.raises(IndexError):
        source[8]


def test_no_pair_is_an_error(tmp_path):
    for name in ("i", "m"):
        (tmp_path / name).mkdir()
    with pytest.raises(SourceError, match="no photo with a label map"):
        Maps(VOCABULARY, pair_by_stem(tmp_path / "i", tmp_path / "m"))


def test_a_missing_folder_is_named_with_the_candidates(tmp_path):
    (tmp_path / "second").mkdir()
    assert find_folder(tmp_path, ["first", "second"], "photos") == tmp_path / "second"
    with pytest.raises(FileNotFoundError, match="no folder of photos; expected .*/x or .*/y"):
        find_folder(tmp_path, ["x", "y"], "photos")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; --root is the folder above x or y"):
        find_folder(tmp_path / "nowhere", ["x", "y"], "photos")


def test_values_are_looked_up():
    table = value_table((7, 3), (0,), size=9)
    stored = np.array([[7, 3, 0]], np.uint8)
    np.testing.assert_array_equal(look_up(stored, table, "f", "p"), [[0, 1, IGNORE_INDEX]])
    for value in (8, 200):  # inside and outside the table
        with pytest.raises(SourceError, match=f"f.png: label value {value} at x 1, y 0; see p"):
            look_up(np.array([[7, value, 3]], np.uint8), table, "f.png", "see p")


def test_class_lists_are_whole():
    lengths = {"ade150": 150, "cityscapes19": 19, "coco_stuff171": 171, "coco_unseen15": 15}
    assert {name: len(paired.read_class_names(name)) for name in lengths} == lengths


def test_a_palette_photo_is_kept(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 3), np.uint8)).convert("P").save(buffer, "PNG")
    assert kept_or_png(buffer.getvalue(), "here") == buffer.getvalue()
