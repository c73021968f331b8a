"""Sources of photos with captions: every format gives the same entries, and places are joined."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ofaseg.data.image_text_source import ImageTextColumns
from ofaseg.data.image_text_sources import CsvImageText, HfImageText, JoinedImageText, ShardImageText, open_image_text
from ofaseg.data.rows import ShardError
from ofaseg.data.shards import ShardWriter
from tests.data.image_text_files import (
    EXPECTED,
    IDS,
    NAMED,
    caption_rows,
    photo,
    saved_dataset,
    write_anno,
    write_csv,
    write_images,
    write_official_parquet,
    write_shards,
)

pytestmark = pytest.mark.usefixtures("datasets_cache")


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
