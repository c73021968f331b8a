"""The doctor finds every fault of the corpus, at its place, and nothing in clean data."""

import os

import pytest

from ofaseg.doctor.examine import examine
from ofaseg.doctor.findings import CODES, SEVERITIES
from tests.faults.corpus import ANY_ROW, FAULTS, clean_row, make, of_group, write_clean_folder, write_clean_shards, write_unchecked

KINDS = of_group("row", "line", "shards", "folder", "path")
CASES = [(kind, format) for kind in KINDS for format in (kind.formats if kind.group == "row" else ("tsv",))]
MARKS = {kind.name: [pytest.mark.slow] for kind in KINDS if kind.slow}


@pytest.mark.parametrize("kind, format", [pytest.param(k, f, id=f"{k.name}-{f}", marks=MARKS.get(k.name, [])) for k, f in CASES])
def test_every_fault_is_found_at_its_place(kind, format, tmp_path):
    path = make(kind, tmp_path, format)
    if kind.name == "shard_without_permission" and os.access(path / "train.tsv", os.R_OK):
        pytest.skip("this user may read every file")
    found = examine([path], quiet=True).found
    told = "\n".join(map(str, found)) or "nothing was found"
    assert all(item.message and item.cure and item.file for item in found)
    assert not any(item.cure.startswith(("in ", ",", ";", ".")) or item.message.endswith((",", "..")) for item in found), told
    if kind.code:
        hits = [item for item in found if (item.code, item.column) == (kind.code, kind.column) and kind.row in (item.row, ANY_ROW)]
        assert hits and any(item.file.endswith(kind.file) for item in hits), told
        if kind.group in ("row", "line"):  # one row was broken, so no finding may name another
            assert {item.row for item in found if item.severity != "note"} <= {kind.row}, told
            assert {item.row for item in found if item.code == kind.code} == {kind.row} and len(hits) == 1, told
    others = {item.code for item in found if item.severity != "note"} - {kind.code, *kind.also}
    assert not others, told


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_clean_shards_have_no_finding(tmp_path, format):
    write_clean_shards(tmp_path, format)
    write_clean_shards(tmp_path, format, "val", first=20, rows_per_shard=3)
    findings = examine([tmp_path, next(tmp_path.glob(f"val*.{format}"))], quiet=True)
    assert findings.found == [] and findings.samples == 8 + 8 + 3


def test_a_clean_folder_has_no_finding(tmp_path):
    findings = examine([write_clean_folder(tmp_path, ("train", "val"))], quiet=True)
    assert findings.found == [] and findings.samples == 8


def test_two_workers_find_what_one_finds(tmp_path):
    """Many rows, every tenth broken in another way."""
    rows = [clean_row(k) for k in range(100)]
    changes = [kind.change for kind in KINDS if kind.group == "row" and "tsv" in kind.formats]
    for k in range(0, 100, 10):
        rows[k] = changes[k // 2](rows[k])
    write_unchecked(tmp_path, rows, "tsv")
    one, two = (examine([tmp_path], workers=workers, quiet=True) for workers in (1, 2))
    assert one.found == two.found and len(one.found) >= 5 and one.samples == two.samples == 100


def test_every_code_is_reached_and_has_a_severity():
    assert {kind.code for kind in FAULTS} - {""} == set(CODES)
    assert {code.severity for code in CODES.values()} == set(SEVERITIES)
