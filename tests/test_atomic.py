import os

import pytest

from ofaseg.atomic import atomic_write


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
