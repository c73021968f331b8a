"""Photos with captions in Parquet files and saved datasets: the columns, the ids, and what is refused."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ofaseg.data.image_text_source import ImageTextColumns
from ofaseg.data.image_text_sources import open_image_text
from ofaseg.data.rows import ShardError
from tests.data.image_text_files import CAPTIONS, photo, write_official_parquet

pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_official_rules_of_retrieval_tables(tmp_path):
    source = open_image_text(str(write_official_parquet(tmp_path / "valid.parquet", [(-1, 5, "dropped"), (4, 43, "last")])), "valid")
    assert len(source) == 3
    assert source[0] == {"image": photo(4), "captions": (*CAPTIONS[4], "last"), "image_id": 4, "caption_ids": (40, 41, 42, 43)}


@pytest.mark.parametrize(
    "columns, chosen",
    [
        ({"jpg": [b"x"], "txt": ["a"], "key": ["k"]}, ("jpg", ("txt",))),
        ({"image": [{"bytes": b"x", "path": "p"}], "caption_0": ["a"], "caption_1": ["b"]}, ("image", ("caption_0", "caption_1"))),
        ({"photo": [b"x"], "sentences": [[{"raw": "a", "sentid": 1}]]}, ("photo", ("sentences",))),
        ({"anything": [b"x"], "caption": [["a", "b"]], "text": ["c"]}, ("anything", ("caption",))),
    ],
)
def test_columns_are_found_by_type_and_name(tmp_path, columns, chosen):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    source = open_image_text(str(tmp_path / "x.parquet"), "train")
    assert (source.image_column, source.caption_columns) == chosen
    assert source[0]["image"] == b"x" and source[0]["captions"] in (("a",), ("a", "b"))


@pytest.mark.parametrize(
    "columns, options, message",
    [
        (
            {"a": [b"x"], "b": [b"y"], "caption": ["c"]},
            {},
            "which column holds the images; it has a, b, caption. Name it with --image-col",
        ),
        (
            {"image": [b"x"], "note": ["y"]},
            {},
            "which column holds the captions; it has image, note. Name it with --caption",
        ),
        ({"image": [b"x"], "note": ["y"]}, {"captions": ("nope",)}, "no column 'nope'; it has image, note"),
    ],
)
def test_unclear_columns_are_listed(tmp_path, columns, options, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ShardError, match=message):
        open_image_text(str(tmp_path / "x.parquet"), "train", ImageTextColumns(**options))


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            ImageTextColumns(image_id="scores"),
            "column 'scores' holds neither whole numbers nor texts; it has image, caption, scores",
        ),
        (ImageTextColumns(image="number"), "column 'number' holds no images; it has .* Name another one with --image-column"),
        (ImageTextColumns(captions=("number",)), "column 'number' holds no captions; .* Name another one with --caption-columns"),
        (ImageTextColumns("caption", ("caption",)), "column 'caption' holds no captions"),
    ],
)
def test_a_column_of_other_values_is_refused(tmp_path, columns, message):
    table = pa.table({"image": [b"x"], "caption": ["a"], "scores": [[0.5]], "number": [1]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ShardError, match=message):
        open_image_text(str(tmp_path / "x.parquet"), "train", columns)


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("name", ["id", "caption_id", "key"])
@pytest.mark.parametrize("kind", [pa.int16(), pa.float64(), pa.uint64(), pa.string()])
def test_any_column_may_hold_the_ids(tmp_path, save, name, kind):
    """Also of a name that ids of captions have, and in every type; a missing one leaves the row out."""
    import datasets

    first = 2**63 + 5 if kind == pa.uint64() else 7
    ids = pa.array([first, 3, first, None], type=None if kind == pa.string() else kind)
    table = pa.table({"image": [b"x", b"y", b"z", b"w"], "caption": ["a", "b", "c", "d"], name: ids.cast(kind)})
    if save:
        datasets.Dataset(table).save_to_disk(str(tmp_path / "x"))
    else:
        pq.write_table(table, tmp_path / "x.parquet")
    source = open_image_text(str(tmp_path / ("x" if save else "x.parquet")), "train", ImageTextColumns(image_id=name))
    assert [(source[i]["image"], source[i]["captions"]) for i in range(len(source))] == [(b"z", ("a", "c")), (b"y", ("b",))]


def test_several_caption_columns_with_ids(tmp_path):
    table = pa.table({"image": [b"x", b"y", b"z"], "one": ["a", "b", "c"], "two": ["d", "e", "f"], "key": ["k", "l", "k"]})
    pq.write_table(table, tmp_path / "x.parquet")
    columns = ImageTextColumns(captions=("one", "two", "one"), image_id="key")
    source = open_image_text(str(tmp_path / "x.parquet"), "train", columns)
    assert [source[i]["captions"] for i in range(len(source))] == [("a", "d", "c", "f"), ("b", "e")]


def test_rows_without_image_or_caption_are_named(tmp_path):
    pq.write_table(pa.table({"image": [b"x", None, b"z"], "caption": [None, "b", "c"]}), tmp_path / "x.parquet")
    source = open_image_text(str(tmp_path / "x.parquet"), "train")
    with pytest.raises(ShardError, match="x.parquet, row 0, column caption: no caption"):
        source[0]
    with pytest.raises(ShardError, match="x.parquet, row 1, column image: no image"):
        source[1]
    assert source[2]["captions"] == ("c",)
