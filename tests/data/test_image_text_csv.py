"""CSV lists of photos with captions: what rows of one photo are, and what is wrong is named or counted."""

import logging

import pytest

from ofaseg.data.image_text_source import ImageTextColumns
from ofaseg.data.image_text_sources import CsvImageText, open_image_text
from ofaseg.data.rows import ShardError
from tests.data.image_text_files import EXPECTED, write_anno, write_csv, write_images


def test_missing_images_are_counted_and_skipped(tmp_path, caplog):
    write_anno(tmp_path / "cc", numbers=(4, 2))
    with caplog.at_level(logging.WARNING):
        source = open_image_text(str(tmp_path / "cc"), "train")
    assert source.missing == 1 and [source[i]["image_id"] for i in range(len(source))] == [4, 2]
    assert "1 of 3 images are not there and left out, the first is" in caplog.text and "9.png" in caplog.text
    for path in (tmp_path / "cc" / "train").iterdir():
        path.unlink()
    with pytest.raises(ShardError, match=r"none of its images is below .*/cc/train; write the list as LIST.csv:IMAGE_FOLDER"):
        open_image_text(str(tmp_path / "cc"), "train")


def test_without_ids_the_image_name_tells_rows_of_one_image(tmp_path):
    source = CsvImageText(write_anno(tmp_path / "cc", ids=False), tmp_path / "cc" / "train")
    assert [source[i]["captions"] for i in range(3)] == [captions for _, captions in EXPECTED]
    assert [source[i]["image_id"] for i in range(3)] == ["4.png", "9.png", "2.png"] and source[0]["caption_ids"] == ()


def test_one_bad_row_never_costs_the_others(tmp_path):
    write_images(tmp_path / "photos")
    path = tmp_path / "list.csv"
    lines = ["image,caption,image_id", "4.png,one,4", "9.png", "2.png,two,x2", "", "4.png,,7", "9.png,three,9", "2.png,gone,-3"]
    path.write_bytes("\n".join(lines).encode() + b"\n2.png,caf\xe9,8\n")
    source = CsvImageText(path, tmp_path / "photos")
    problems = {}
    for i in range(len(source)):
        try:
            problems[i] = source[i]["captions"]
        except ShardError as error:
            problems[i] = str(error).removeprefix(str(path))
    assert problems == {
        0: ("one",),
        1: ", row 1: the row has 1 fields, at least 3 are needed; correct it",
        2: ", row 2, column image_id: 'x2' is not a whole number; correct the row",
        3: ", row 4, column caption: no caption; write one, or leave the row out",
        4: ("three",),
        5: ", row 7, column caption: not UTF-8; write the list in UTF-8",
    }
    (tmp_path / "photos" / "9.png").unlink()  # after opening
    with pytest.raises(ShardError, match="9.png, row 5: cannot be read"):
        source[4]


def test_paths_may_be_absolute_or_begin_with_a_dot(tmp_path):
    write_images(tmp_path / "photos")
    rows = [(str(tmp_path / "photos" / "4.png"), "one"), ("./9.png", "two"), ("9.png", "three")]
    source = CsvImageText(write_csv(tmp_path / "list.csv", rows, ("image", "caption")), tmp_path / "photos")
    assert source.missing == 0 and [source[i]["captions"] for i in range(len(source))] == [("one",), ("two", "three")]


def test_a_comma_without_quotation_marks_is_told(tmp_path):
    write_images(tmp_path)
    (tmp_path / "list.csv").write_text("image,caption\n4.png,a man, with a hat\n9.png,a dog,\n")
    source = CsvImageText(tmp_path / "list.csv", tmp_path)
    with pytest.raises(ShardError, match="row 0: the row has 3 fields, the first line names 2; put captions with commas"):
        source[0]
    assert source[1]["captions"] == ("a dog",)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_quotation_mark_that_is_never_closed_is_told(tmp_path, end):
    write_images(tmp_path)
    (tmp_path / "list.csv").write_text('image,caption\n4.png,"a 12"" pizza"\n9.png,"an open one\n2.png,a man' + end)
    with pytest.raises(ShardError, match="row 1: a quotation mark without its partner"):
        CsvImageText(tmp_path / "list.csv", tmp_path)
    (tmp_path / "list.csv").write_text('image,caption\n4.png,"a 12"" pizza"\n9.png,"two\nlines"' + end)
    assert CsvImageText(tmp_path / "list.csv", tmp_path)[1]["captions"] == ("two\nlines",)


def test_one_caption_column_in_a_list(tmp_path):
    write_anno(tmp_path / "cc")
    with pytest.raises(ShardError, match="train_anno.csv: a list has one caption column; name one of caption, image"):
        open_image_text(str(tmp_path / "cc"), "train", ImageTextColumns(captions=("caption", "image")))


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_list_as_spreadsheets_write_it(tmp_path, start):
    """A byte order mark before quoted column names, and whole numbers with a decimal point."""
    write_images(tmp_path / "photos")
    text = '"image","caption","image_id"\r\n4.png,"a, b",4.0\r\n9.png,two,9\r\n4.png,three,4\r\n2.png,four,2.5\r\n'
    (tmp_path / "list.csv").write_bytes(start + text.encode())
    source = CsvImageText(tmp_path / "list.csv", tmp_path / "photos")
    assert [(source[i]["image_id"], source[i]["captions"]) for i in (0, 1)] == [(4, ("a, b", "three")), (9, ("two",))]
    with pytest.raises(ShardError, match="row 3, column image_id: '2.5' is not a whole number"):
        source[2]


def test_ids_that_only_look_like_numbers_stay_apart(tmp_path):
    write_images(tmp_path)
    write_csv(tmp_path / "list.csv", [("4.png", "a", "1e3"), ("9.png", "b", "1000")], ("image", "caption", "key"))
    source = CsvImageText(tmp_path / "list.csv", tmp_path, ImageTextColumns(image_id="key"))
    assert [source[i]["image_id"] for i in range(len(source))] == ["1e3", 1000]


def test_other_lists_are_refused(tmp_path):
    (tmp_path / "names.csv").write_text("image,caption\n\n")
    with pytest.raises(ShardError, match="names.csv: the list names columns, and no image; write a row per caption"):
        CsvImageText(tmp_path / "names.csv", tmp_path)
    (tmp_path / "returns.csv").write_bytes(b"image,caption\r4.png,one\r")
    with pytest.raises(ShardError, match="end its lines with a line feed"):
        CsvImageText(tmp_path / "returns.csv", tmp_path)
    with pytest.raises(ShardError, match="names url, text, not image and caption; say which are which with --image-col"):
        CsvImageText(write_csv(tmp_path / "a.csv", [["x", "y"]], ("url", "text")), tmp_path)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ShardError, match="the first line names nothing"):
        CsvImageText(tmp_path / "empty.csv", tmp_path)
    (tmp_path / "quote.csv").write_text('image,caption\n"' + "x" * 200_000)
    with pytest.raises(ShardError, match="quotation mark"):
        CsvImageText(tmp_path / "quote.csv", tmp_path)
