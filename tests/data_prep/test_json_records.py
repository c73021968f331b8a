"""Byte ranges of JSON records: whatever the file's spacing and letters, the bytes are those of the record."""

import json

import pytest

from data_prep.json_records import scan_lists
from data_prep.source import SourceError

DATA = {
    "info": {"images": [1], "note": 'a "list": ['},
    "images": [{"id": 7, "file_name": "é日.jpg"}, {"id": 2**60, "nested": {"annotations": [[]]}}, "text ]", 3, [None, True]],
    "annotations": [],
    "images_too": [5],
}


@pytest.mark.parametrize("indent, ascii, mark", [(None, True, b""), (2, False, b"\xef\xbb\xbf"), ("\t", False, b""), (0, True, b"")])
def test_ranges_hold_the_records(tmp_path, indent, ascii, mark):
    path = tmp_path / "a.json"
    path.write_bytes(mark + json.dumps(DATA, indent=indent, ensure_ascii=ascii).encode() + b" \r\n")
    found = scan_lists(path, {"images": lambda record: record, "annotations": id})
    assert found["annotations"] == [] and set(found) == {"images", "annotations"}
    assert [record.kept for record in found["images"]] == DATA["images"]
    data = path.read_bytes()
    assert [json.loads(data[record.start : record.end]) for record in found["images"]] == DATA["images"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "{ expected at byte 0, found the end of the file"),
        ("[]", "{ expected at byte 0"),
        ('{"images": [1, 2', ", or ] expected at byte 16, found the end of the file"),
        ('{"images": [1 2]}', ", or ] expected at byte 14, found 2"),
        ('{"images": [{"a": }]}', "Expecting value"),
        ('{"images" [1]}', ": expected at byte 10"),
        ('{"images": [1],', "Expecting value"),
        ('{"images": ' + "[" * 100_000, "recursion"),
        ('{"images": ["\xe9"]}', "codec can't decode"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match="a.json: not a JSON object that can be read .*copy the file again") as error:
        scan_lists(path, {"images": id})
    assert message in str(error.value)


def test_what_is_missing_is_named(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match="a.json: annotations not found"):
        scan_lists(path, {"images": id})
    for text in ("{}", '{"images": {"0": 1}}', '{"annotations": []}'):
        path.write_text(text)
        with pytest.raises(SourceError, match="a.json: no list 'images'"):
            scan_lists(path, {"images": id})
