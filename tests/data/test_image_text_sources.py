"""Sources of photos with captions: every format gives the same entries, and what is wrong is named or counted."""

import csv
import logging
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ofaseg.data import codec
from ofaseg.data.image_text_source import ImageTextColumns
from ofaseg.data.image_text_sources import CsvImageText, HfImageText, JoinedImageText, ShardImageText, open_image_text
from ofaseg.data.rows import ShardError
from ofaseg.data.shards import ShardWriter

CAPTIONS = {
    4: ["a red square, small", 'with "quotes"\nand a line break', "naïve 猫\u2028 here"],
    9: ["green"],
    2: ["blue as the sea", "a second one"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def photo(number: int) -> bytes:
    return codec.encode_image(np.full((4, 6, 3), 20 * number, np.uint8), "png")


def caption_rows():
    """(image id, caption id, caption) of every caption, those of an image not in a row."""
    rows = [(image_id, 10 * image_id + k, text) for image_id, texts in CAPTIONS.items() for k, text in enumerate(texts)]
    return [rows[0], rows[3], *rows[1:3], *rows[4:]]


EXPECTED = [(photo(k), tuple(CAPTIONS[k])) for k in (4, 9, 2)]
IDS = [(4, (40, 41, 42)), (9, (90,)), (2, (20, 21))]


def write_images(folder, numbers=CAPTIONS):
    folder.mkdir(parents=True, exist_ok=True)
    for k in numbers:
        (folder / f"{k}.png").write_bytes(photo(k))


def write_csv(path, rows, columns=("image", "caption", "image_id", "caption_id")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def write_anno(root, split="train", numbers=CAPTIONS, ids=True):
    """The official layout: <split>_anno.csv and a folder of its images."""
    write_images(root / split, numbers)
    columns = ("image", "caption", "image_id", "caption_id") if ids else ("image", "caption")
    rows = [(f"{image_id}.png", text, image_id, caption_id) for image_id, caption_id, text in caption_rows()]
    return write_csv(root / f"{split}_anno.csv", [row[: len(columns)] for row in rows], columns)


def write_official_parquet(path, extra=()):
    """Rows as in the retrieval sets; the image of an earlier row of an image is another one, for the last counts."""
    rows = [*caption_rows(), *extra]
    last = {image_id: k for k, (image_id, _, _) in enumerate(rows)}
    table = {
        "imbytes": [photo(abs(i)) if last[i] == k else photo(12) for k, (i, _, _) in enumerate(rows)],
        "caption": [text for _, _, text in rows],
        "image_id": [i for i, _, _ in rows],
        "id": [caption_id for _, caption_id, _ in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def write_shards(root, split="train", file_format="parquet"):
    with ShardWriter(root, split, None, ["image", "id", "captions"], file_format) as writer:
        for k, texts in CAPTIONS.items():
            writer.write({"id": str(k), "image": photo(k), "captions": texts})
    return root


def saved_dataset(path, as_dict=True):
    import datasets

    rows = [{"image": {"bytes": photo(k), "path": None}, "captions": texts} for k, texts in CAPTIONS.items()]
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.Sequence(datasets.Value("string"))})
    dataset = datasets.Dataset.from_list(rows, features=features)
    (datasets.DatasetDict({"validation": dataset}) if as_dict else dataset).save_to_disk(str(path))
    return path


def open_every(tmp_path, name):
    """(spec, split, expected class) of one of the formats."""
    if name in ("tsv", "parquet"):
        return str(write_shards(tmp_path / "shards", "train", name)), "train", ShardImageText
    if name == "shard file":
        return str(next(write_shards(tmp_path / "shards").glob("*.parquet"))), "train", ShardImageText
    if name == "official csv":
        return str(write_anno(tmp_path / "cc").parent), "train", CsvImageText
    if name == "csv with folder":
        write_images(tmp_path / "photos")
        path = write_anno(tmp_path / "lists", "list", numbers=())
        return f"{path}:{tmp_path / 'photos'}", "train", CsvImageText
    if name == "official parquet":
        return str(write_official_parquet(tmp_path / "f30k" / "valid.parquet").parent), "val", HfImageText
    if name == "parquet file":
        return str(write_official_parquet(tmp_path / "anything.parquet")), "train", HfImageText
    if name == "saved dict":
        return str(saved_dataset(tmp_path / "saved")), "valid", HfImageText
    assert name == "saved dataset"
    return str(saved_dataset(tmp_path / "saved", as_dict=False)), "train", HfImageText


FORMATS = ("tsv", "parquet", "shard file", "official csv", "csv with folder", "official parquet", "parquet file")
FORMATS += ("saved dict", "saved dataset")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_entries(tmp_path, name):
    spec, split, kind = open_every(tmp_path, name)
    source = open_image_text(spec, split)
    assert type(source) is kind and len(source) == 3 and source.sizes == (3,) and source.missing == 0
    for one in (source, pickle.loads(pickle.dumps(source))):
        entries = [one[i] for i in (2, 0, 1)]  # in any order
        assert [(entry["image"], entry["captions"]) for entry in entries] == [EXPECTED[i] for i in (2, 0, 1)]
        found = [(entry["image_id"], entry["caption_ids"]) for entry in entries]
        if "official" in name or name in ("csv with folder", "parquet file"):
            assert found == [IDS[i] for i in (2, 0, 1)]
        else:
            assert len({image_id for image_id, _ in found}) == 3 and all(ids == () for _, ids in found)
    with pytest.raises(IndexError):
        source[3]
    assert str(tmp_path) in source.location(1, "image")


def test_several_places_are_joined(tmp_path):
    spec = f"{write_shards(tmp_path / 'shards')}, {write_anno(tmp_path / 'cc').parent}"
    source = open_image_text(spec, "train")
    assert isinstance(source, JoinedImageText) and len(source) == 6 and source.sizes == (3, 3)
    assert [source[i]["captions"] for i in range(6)] == [captions for _, captions in EXPECTED] * 2
    assert source.location(1).startswith(str(tmp_path / "shards")) and source.location(3).startswith(str(tmp_path / "cc"))
    with pytest.raises(IndexError, match="entry 6 is outside 0..5"):
        source[6]


def test_equal_ids_of_joined_places_are_of_different_photos(tmp_path):
    write_anno(tmp_path / "a"), write_anno(tmp_path / "b")
    source = open_image_text(f"{tmp_path / 'a'},{tmp_path / 'b'}", "train")
    ids = [source[i]["image_id"] for i in range(6)]
    assert ids[:3] == [4, 9, 2] and len(set(map(str, ids))) == 6


# ---- CSV lists ----


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


NAMED = ImageTextColumns("filepath", ("title",), "photo")


@pytest.mark.parametrize("write", ["list", "table", "saved"])
def test_columns_may_have_other_names(tmp_path, write):
    import datasets

    rows = [(image_id, text, "not a caption") for image_id, _, text in caption_rows()]  # ids are texts below
    write_images(tmp_path / "photos")
    if write == "list":
        columns = ("photo", "filepath", "caption", "title")
        spec = write_csv(tmp_path / "list.csv", [(f"n{i}", f"{i}.png", other, text) for i, text, other in rows], columns)
        spec = f"{spec}:{tmp_path / 'photos'}"
    else:  # another column of bytes is not the photo
        table = pa.table({"photo": [f"n{i}" for i, _, _ in rows], "filepath": [photo(i) for i, _, _ in rows], "image": [b""] * len(rows)}
                         | {"title": [text for _, text, _ in rows], "caption": [other for _, _, other in rows]})  # fmt: skip
        spec = tmp_path / "x"
        pq.write_table(table, f"{spec}.parquet")
        if write == "saved":
            datasets.Dataset(table).save_to_disk(str(spec))
        spec = f"{spec}.parquet" if write == "table" else spec
    source = open_image_text(str(spec), "train", NAMED)
    assert [(source[i]["image"], source[i]["captions"]) for i in range(len(source))] == EXPECTED and not source.apart
    assert [source[i]["image_id"] for i in range(3)] == ["n4", "n9", "n2"]
    with pytest.raises(ShardError, match="title2"):
        open_image_text(str(spec), "train", ImageTextColumns("filepath", ("title2",), "photo"))
    with pytest.raises(ShardError, match="number"):
        open_image_text(str(spec), "train", ImageTextColumns("filepath", ("title",), "number"))


def test_one_caption_column_in_a_list(tmp_path):
    write_anno(tmp_path / "cc")
    with pytest.raises(ShardError, match="train_anno.csv: a list has one caption column; name one of caption, image"):
        open_image_text(str(tmp_path / "cc"), "train", ImageTextColumns(captions=("caption", "image")))


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


def test_columns_of_shards_cannot_be_named(tmp_path):
    spec = str(write_shards(tmp_path / "shards"))
    with pytest.raises(ShardError, match="shards have the columns image, captions and id, others cannot be named; leave the options out"):
        open_image_text(spec, "train", NAMED)
    write_anno(tmp_path / "cc")
    assert len(open_image_text(f"{spec},{tmp_path / 'cc'}", "train", ImageTextColumns(captions=("caption",)))) == 6


def test_rows_that_nothing_brings_together_are_told_apart(tmp_path):
    pq.write_table(pa.table({"image": [b"x", b"x"], "caption": ["a", "b"]}), tmp_path / "x.parquet")
    write_anno(tmp_path / "cc", ids=False)
    spec = str(tmp_path / "x.parquet")
    assert open_image_text(spec, "train").apart and len(open_image_text(spec, "train")) == 2
    assert open_image_text(f"{tmp_path / 'cc'},{spec}", "train").apart
    for other in (write_official_parquet(tmp_path / "valid.parquet"), saved_dataset(tmp_path / "saved"), tmp_path / "cc"):
        assert not open_image_text(str(other), "valid" if other.name == "saved" else "train").apart


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


# ---- tables ----


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


def test_rows_without_image_or_caption_are_named(tmp_path):
    pq.write_table(pa.table({"image": [b"x", None, b"z"], "caption": [None, "b", "c"]}), tmp_path / "x.parquet")
    source = open_image_text(str(tmp_path / "x.parquet"), "train")
    with pytest.raises(ShardError, match="x.parquet, row 0, column caption: no caption"):
        source[0]
    with pytest.raises(ShardError, match="x.parquet, row 1, column image: no image"):
        source[1]
    assert source[2]["captions"] == ("c",)


# ---- what is no source ----


def test_one_message_says_what_is_accepted(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    write_shards(tmp_path / "shards")
    with ShardWriter(tmp_path / "plain", "train", None, ["image", "id"]) as writer:
        writer.write({"id": "a", "image": photo(1)})
    for spec, split, message in (
        (tmp_path / "nowhere", "train", "nowhere: no such file or folder; give a folder that data_prep/prepare.py wrote"),
        (tmp_path / "empty", "train", "the folder has neither shards, nor lists, nor a saved dataset. Give a folder"),
        (tmp_path / "shards", "test", "no image-text data of split 'test'; the folder has train"),
        (tmp_path / "notes.txt", "train", "not an image-text file"),
        (tmp_path / "plain", "train", "image-text data need image, captions and id"),
        (saved_dataset(tmp_path / "saved"), "train", "no split 'train'; it has validation"),
        (" , ", "train", "no image-text data named"),
    ):
        with pytest.raises(ShardError, match=message):
            open_image_text(str(spec), split)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(write_official_parquet(tmp_path / "valid.parquet").read_bytes()[:-20])
    with pytest.raises(ShardError, match="damaged.parquet: not a complete Parquet file"):
        open_image_text(str(damaged), "valid")
