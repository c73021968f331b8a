"""Flickr30k: Karpathy's list, both plain lists, and what is missing."""

import argparse
import json
import logging

import pytest

from data_prep import flickr30k
from data_prep.source import SourceError
from tests.data_prep.raw_layouts import raw_flickr30k, write_photo
from tests.data_prep.test_coco_captions import karpathy_entry

NOTHING = argparse.Namespace()
NAMES = ("1000092795.jpg", "10002456.jpg")


def test_the_plain_list_is_one_split(tmp_path, caplog):
    raw_flickr30k(tmp_path)
    assert flickr30k.list_splits(tmp_path, NOTHING) == ["train"]
    with caplog.at_level(logging.WARNING):
        source = flickr30k.open_split(tmp_path, "train", NOTHING)
    assert "split train is all photos; put dataset_flickr30k.json beside it" in caplog.text
    assert [sample["id"] for sample in source] == [name.removesuffix(".jpg") for name in NAMES]
    assert source[1]["captions"] == ["Two men , number 0 .", "Two men , number 1 ."]
    assert source[1]["image"] == (tmp_path / "flickr30k-images" / NAMES[1]).read_bytes()


def test_kaggles_list(tmp_path, caplog):
    folder = tmp_path / "flickr30k_images"
    for k, name in enumerate(NAMES):
        write_photo(folder / "flickr30k_images" / name, 4, 6, k)
    lines = ["image_name| comment_number| comment", f"{NAMES[0]}| 0| A man , | with a bar .", f"{NAMES[1]}| 0| Two dogs .", ""]
    lines += [f"{NAMES[0]}| 4   A dog runs across the grass .", f"{NAMES[1]}| 1| One more ."]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        source = flickr30k.open_split(tmp_path, "train", NOTHING)
    assert [sample["captions"] for sample in source] == [["A man , | with a bar ."], ["Two dogs .", "One more ."]]
    assert "1 of 4 lines are no caption and left out, the first is line 5" in caplog.text


def test_karpathy_splits(tmp_path):
    raw_flickr30k(tmp_path)
    entries = [karpathy_entry(k, split, "") for k, split in enumerate(("train", "test"))]
    for entry, name in zip(entries, NAMES):
        entry["filename"] = name
        del entry["filepath"]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))
    assert flickr30k.list_splits(tmp_path, NOTHING) == ["train", "val", "test"]
    source = flickr30k.open_split(tmp_path, "test", NOTHING)
    assert len(source) == 1 and source[0]["id"] == "10002456" and source[0]["captions"][2] == "picture 1, 2"
    with pytest.raises(SourceError, match="dataset_flickr30k.json: lists no photo with a caption for this split"):
        flickr30k.open_split(tmp_path, "val", NOTHING)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no list of captions; expected .*dataset_flickr30k.json or .*results_20130124.token or"):
        flickr30k.list_splits(tmp_path, NOTHING)
    raw_flickr30k(tmp_path)
    (tmp_path / "flickr30k-images" / NAMES[0]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{NAMES[0]}: photo not found, though .*token lists it"):
        flickr30k.open_split(tmp_path, "train", NOTHING)[0]
    (tmp_path / "flickr30k-images").rename(tmp_path / "pictures")
    with pytest.raises(FileNotFoundError, match="no folder of photos; expected .*flickr30k-images or .*flickr30k_images or .*images"):
        flickr30k.open_split(tmp_path, "train", NOTHING)


@pytest.mark.parametrize("content, message", [(b"a b c\n", "no line is a caption"), (b"\xff\xfe", "not UTF-8")])
def test_other_lists_are_refused(tmp_path, content, message):
    raw_flickr30k(tmp_path)
    (tmp_path / "results_20130124.token").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        flickr30k.open_split(tmp_path, "train", NOTHING)
