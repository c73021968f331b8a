import fcntl
import os

import pytest

from ofaseg.atomic import atomic_folder, atomic_write, remove_leftovers


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


def test_a_folder_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))

    def checked_replace(source, target):
        inside = [source, *(source / name for name in ("a", "sub", "sub/b"))]
        assert {path.stat().st_ino for path in inside} == set(flushed)
        replace(source, target)

    monkeypatch.setattr(os, "replace", checked_replace)
    with atomic_folder(tmp_path / "new" / "out") as folder:
        (folder / "sub").mkdir()
        for name in ("a", "sub/b"):
            (folder / name).write_text(name)
    assert (tmp_path / "new" / "out" / "sub" / "b").read_text() == "sub/b" and os.listdir(tmp_path / "new") == ["out"]
    assert flushed[-1] == (tmp_path / "new").stat().st_ino


def test_an_exception_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
            raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_folders_of_killed_writers_are_removed_and_those_of_others_kept(tmp_path):
    names = (".out.killed_1.tmp", ".out.living_1.tmp", ".out.x.killed_1.tmp")
    for name in names:
        (tmp_path / name / "sub").mkdir(parents=True)
    lock = os.open(tmp_path / names[1], os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with atomic_folder(tmp_path / "out"):
        pass
    os.close(lock)
    assert sorted(os.listdir(tmp_path)) == [*names[1:], "out"]
