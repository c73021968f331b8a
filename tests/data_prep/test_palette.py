"""Colour-coded maps: palette files, colours to ids."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.palette import colours_to_ids, read_palette
from data_prep.source import SourceError
from ofaseg.vocabulary import IGNORE_INDEX


def picture(rgb, format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.array(rgb, dtype=np.uint8)).save(buffer, format)
    return buffer.getvalue()


def write(tmp_path, text):
    (tmp_path / "palette.txt").write_text(text)
    return tmp_path / "palette.txt"


def test_colours_become_ids(tmp_path):
    palette = read_palette(write(tmp_path, "# comment\ncar 64 0 128\ntall grass\t64 64 0\n\nvoid 0 0 0\n"))
    assert palette[1] == ("tall grass", (64, 64, 0))
    data = picture([[[64, 0, 128], [64, 64, 0], [0, 0, 0]], [[0, 0, 0], [64, 0, 128], [64, 0, 128]]])
    ids = colours_to_ids(data, palette, ("tall grass", "car"), "f")
    assert ids.tolist() == [[1, 0, IGNORE_INDEX], [IGNORE_INDEX, 1, 1]] and ids.dtype == np.int32


def test_unknown_colours_and_jpegs(tmp_path):
    palette = read_palette(write(tmp_path, "car 64 0 128\n"))
    with pytest.raises(SourceError, match=r"f: colour 64 1 128 at x 1, y 0 \(1 pixels\) is not in the palette"):
        colours_to_ids(picture([[[64, 0, 128], [64, 1, 128]]]), palette, ("car",), "f")
    with pytest.raises(SourceError, match="f: the label map is a JPEG, whose compression changes colours"):
        colours_to_ids(picture([[[64, 0, 128]]], "JPEG"), palette, ("car",), "f")
    with pytest.raises(SourceError, match="f: not an image"):
        colours_to_ids(b"nothing", palette, ("car",), "f")


@pytest.mark.parametrize(
    "text, message",
    [
        ("car 1 2\n", "row 0: 'car 1 2' is not 'name r g b'"),
        ("car 1 2 256\n", "row 0: .* colours 0..255"),
        ("a 1 2 3\nb 1 2 3\n", "row 1: the name or the colour of 'b 1 2 3' stood before"),
        ("\n", "the palette has no line"),
    ],
)
def test_palette_files_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(SourceError, match=f"palette.txt.*{message}"):
        read_palette(write(tmp_path, text))
    with pytest.raises(SourceError, match="nowhere: the palette cannot be read"):
        read_palette(tmp_path / "nowhere")
