"""`ofaseg browse` on toy shards: pages, splits, bad rows, TSV files without a vocabulary."""

import pytest

from ofaseg.cli import main
from tests.toy import write_toy_shards


@pytest.fixture
def shards(tmp_path):
    root = tmp_path / "shards"
    write_toy_shards(root, "train", 5)
    write_toy_shards(root, "val", 3)
    return root


def break_row(path, row):
    lines = path.read_bytes().split(b"\n")
    lines[row] = b"AAAA" + lines[row][4:]
    path.write_bytes(b"\n".join(lines))


def test_all_splits_on_pages(shards, capsys):
    assert main(["browse", str(shards), "--per-page", "4"]) == 0
    out = shards / "gallery"
    assert sorted(path.name for path in out.iterdir()) == ["classes.js", "index.html", "page-002.html", "page-003.html"]
    assert "8 rows on 3 pages" in capsys.readouterr().out
    last = (out / "page-003.html").read_text()
    assert "Split val" in last and last.count('class="row card"') == 3 and "val2" in last and "blue" in last
    assert main(["browse", str(shards), "--split", "val", "--out", str(shards / "g2")]) == 0
    assert (shards / "g2" / "index.html").read_text().count('class="row card"') == 3


def test_a_bad_row_is_a_card_and_costs_no_other(shards, capsys):
    path = next(shards.glob("train*.tsv"))
    break_row(path, 1)
    assert main(["browse", str(shards), "--split", "train"]) == 0
    page = (shards / "gallery" / "index.html").read_text()
    assert page.count('class="row card"') == 4 and page.count('class="row card bad"') == 1
    printed = capsys.readouterr().out
    assert "1 of them cannot be read" in printed and f"{path}, row 1, column image" in printed


def test_max_rows_are_spread_over_the_split(shards):
    assert main(["browse", str(shards), "--split", "train", "--max-rows", "3"]) == 0
    page = (shards / "gallery" / "index.html").read_text()
    assert [name in page for name in ("train0", "train1", "train2", "train3", "train4")] == [True, False, True, False, True]


def test_a_tsv_file_without_vocabulary_takes_the_names_given(shards, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    next(shards.glob("val*.tsv")).rename(alone / "other.tsv")
    assert main(["browse", str(alone / "other.tsv")]) == 2
    assert "--class-names" in capsys.readouterr().err
    assert main(["browse", str(alone / "other.tsv"), "--class-names", "rot,blau,grau", "--label-offset", "0"]) == 0
    page = (alone / "gallery" / "index.html").read_text()
    assert page.count('class="row card"') == 3 and "blau" in page and "alone" in page


def test_user_errors_are_one_line(shards, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "empty")], "no .tsv or .parquet file"),
        ([str(tmp_path / "absent.tsv")], "no such file"),
        ([str(shards), "--split", "test"], "no shards of split 'test'"),
        ([str(shards), "--per-page", "0"], "--per-page 0"),
    ):
        assert main(["browse", *arguments]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
