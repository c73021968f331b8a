import gzip

import pytest

from ofaseg.data.foreign import check_own_kind, foreign_kind
from ofaseg.data.rows import ShardError


@pytest.mark.parametrize(
    "data, kind",
    [
        (gzip.compress(b"rows", mtime=0), "a gzip file"),
        (b"PK\x03\x04rest", "a zip file"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer, not the file itself"),
        (b"\n  <!DOCTYPE HTML>", "a web page, not the file itself"),
        (b"<HTML>", "a web page, not the file itself"),
        (b"/9j/4AAQ\t", ""),
        (b"PAR1\x15\x04\x15", "a Parquet file"),
        (b"Par1 is an id\t", ""),
        (b"", ""),
    ],
)
def test_kinds(tmp_path, data, kind):
    (tmp_path / "x.tsv").write_bytes(data)
    assert foreign_kind(tmp_path / "x.tsv")[0] == kind
    if not kind:
        check_own_kind(tmp_path / "x.tsv")
        return
    with pytest.raises(ShardError, match=f"x.tsv: {kind}; ") as caught:
        check_own_kind(tmp_path / "x.tsv")
    assert caught.value.file == str(tmp_path / "x.tsv")


def test_a_parquet_file_of_its_own_name(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1\x15\x04\x15")
    check_own_kind(tmp_path / "x.parquet")


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(ShardError, match="cannot be read .*check its permissions and the disk"):
        check_own_kind(tmp_path / "x.tsv")
