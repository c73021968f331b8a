import os

import pytest

from ofaseg.atomic import atomic_write, remove_leftovers


def test_replaces_whole_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path, "w") as file:
        file.write("schön")
    assert path.read_text(encoding="utf-8") == "schön"
    assert os.listdir(path.parent) == ["file.txt"]


def test_an_exception_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_leftovers_of_killed_writers(tmp_path):
    for name in (".a[1].txt.x7.tmp", ".a[1].txt.y_.tmp", ".a1.txt.x7.tmp", "a[1].txt", ".b.txt.x7.tmp"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path / "a[1].txt")
    assert sorted(os.listdir(tmp_path)) == [".a1.txt.x7.tmp", ".b.txt.x7.tmp", "a[1].txt"]
