"""ShardWriter: all or nothing, and what it refuses to write."""

import errno
import json
import multiprocessing
import os
import stat
import time

import numpy as np
import pytest

from ofaseg.data import codec, parquet, tsv
from ofaseg.data.shards import ShardError, ShardReader, ShardWriter, load_vocabulary
from ofaseg.vocabulary import ClassVocabulary
from tests.data.sample_rows import VOCABULARY, make_row

COLUMNS = ("image", "label_map", "id")


def row(k, **changes):
    return {name: value for name, value in make_row(k).items() if name in COLUMNS} | changes


def writer(root, split="train", format="tsv", vocabulary=VOCABULARY, columns=COLUMNS, rows_per_shard=3):
    return ShardWriter(root, split, vocabulary, columns, format, rows_per_shard)


@pytest.mark.parametrize("format", ["tsv", "parquet"])
class TestAtomic:
    def test_nothing_is_left_after_an_exception(self, tmp_path, format):
        with pytest.raises(KeyboardInterrupt):
            with writer(tmp_path, format=format) as out:
                for k in range(8):
                    out.write(row(k))
                raise KeyboardInterrupt
        assert os.listdir(tmp_path) == []

    def test_old_files_survive_an_exception(self, tmp_path, format):
        with writer(tmp_path, format=format) as out:
            for k in range(5):
                out.write(row(k))
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(ShardError):
            with writer(tmp_path, format=format) as out:
                out.write(row(9))
                out.write(row(9))
        assert sorted(os.listdir(tmp_path)) == before
        assert [ShardReader.for_split(tmp_path, "train")[k]["id"] for k in range(5)] == [f"sample_{k}" for k in range(5)]

    def test_files_appear_at_the_end(self, tmp_path, format):
        with writer(tmp_path, format=format) as out:
            for k in range(7):
                out.write(row(k))
            assert not [name for name in os.listdir(tmp_path) if not name.startswith(".")]
        names = sorted(name for name in os.listdir(tmp_path) if not name.endswith(".idx"))
        assert names == [f"train-0000{k}-of-00003.{format}" for k in range(3)] + ["vocabulary.json"]

    def test_rewriting_replaces_the_split(self, tmp_path, format):
        for count in (8, 2):
            with writer(tmp_path, format=format) as out:
                for k in range(count):
                    out.write(row(k))
        assert len(ShardReader.for_split(tmp_path, "train")) == 2
        assert len([name for name in os.listdir(tmp_path) if name.startswith("train")]) == (2 if format == "tsv" else 1)

    def test_splits_are_merged(self, tmp_path, format):
        for split, count in (("train", 4), ("val", 2)):
            with writer(tmp_path, split, format) as out:
                for k in range(count):
                    out.write(row(k))
        description = json.loads((tmp_path / "vocabulary.json").read_text())
        assert description["num_rows"] == {"train": 4, "val": 2} and set(description["content_hash"]) == {"train", "val"}
        assert [(file["name"], file["rows"]) for file in description["files"]["train"]] == [
            (f"train-0000{k}-of-00002.{format}", rows) for k, rows in enumerate((3, 1))
        ]
        assert "writing" not in description

    def test_full_disk(self, tmp_path, format, monkeypatch):
        part = {"tsv": tsv.TsvPart, "parquet": parquet.ParquetPart}[format]

        def full(self):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(part, "close", full)
        with pytest.raises(ShardError, match="No space left on device.; free some space"):
            with writer(tmp_path, format=format) as out:
                out.write(row(1))
        assert os.listdir(tmp_path) == []


def write_rows(root, split, format, ids):
    with writer(root, split, format) as out:
        for k in ids:
            out.write(row(k))


def rows_of(root, split):
    reader = ShardReader.for_split(root, split)
    return [reader[k]["id"] for k in range(len(reader))]


def write_and_die(root, format, ids, steps):
    """Rewrites "train" in a process that is killed before its rename or removal number `steps` (from 0); False when it was not."""

    def child():
        left = iter(range(steps))
        for name in ("replace", "unlink"):
            real = getattr(os, name)

            def counted(*args, real=real, **kwargs):
                if next(left, None) is None:
                    os._exit(9)
                return real(*args, **kwargs)

            setattr(os, name, counted)
        write_rows(root, "train", format, ids)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, 9)
    return process.exitcode == 9


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_a_kill_at_any_step_never_mixes_old_and_new_rows(tmp_path, format):
    """Seven old rows in three files, eight new ones in three: names and counts of files agree."""
    old, new = [f"sample_{k}" for k in range(7)], [f"sample_{k}" for k in range(20, 28)]
    for steps in range(100):
        root = tmp_path / str(steps)
        write_rows(root, "val", format, range(2))
        write_rows(root, "train", format, range(7))
        killed = write_and_die(root, format, range(20, 28), steps)
        assert rows_of(root, "val") == ["sample_0", "sample_1"] and load_vocabulary(root) == VOCABULARY
        if not killed:
            assert rows_of(root, "train") == new
            break
        if steps == 0:
            assert rows_of(root, "train") == old
            continue
        with pytest.raises(ShardError, match="writing split 'train' was interrupted.*write the split again"):
            rows_of(root, "train")
        write_rows(root, "train", format, range(3))
        assert rows_of(root, "train") == ["sample_0", "sample_1", "sample_2"]
    assert killed is False and steps > 3


def test_a_failing_exchange_is_told_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    write_rows(tmp_path, "train", "tsv", range(3))

    def fail(self, path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tsv.TsvPart, "renamed", fail)
    with pytest.raises(ShardError, match="Input/output error"):
        write_rows(tmp_path, "train", "tsv", range(5, 8))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    with pytest.raises(ShardError, match="interrupted"):
        rows_of(tmp_path, "train")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_file_systems_that_cannot_flush_a_folder(tmp_path, monkeypatch, code):
    flush = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    for ids in (range(3), range(5, 7)):
        write_rows(tmp_path, "train", "tsv", ids)
        assert rows_of(tmp_path, "train") == [f"sample_{k}" for k in ids]


def stop_at(monkeypatch, number, error, after=False):
    """The rename `number` (from 0; each completion of vocabulary.json is one too) raises `error`, or does so when done."""
    real, left = os.replace, iter(range(number))

    def replace(*args, **kwargs):
        stops = next(left, None) is None
        if stops and not after:
            monkeypatch.setattr(os, "replace", real)
            raise error
        real(*args, **kwargs)
        if stops:
            monkeypatch.setattr(os, "replace", real)
            raise error

    monkeypatch.setattr(os, "replace", replace)


STOPS = [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.EIO, "Input/output error"), ShardError)]


@pytest.mark.parametrize("error, expected", STOPS)
@pytest.mark.parametrize("number, after", [(0, False), (0, True), (1, False)])
def test_old_rows_stay_readable_when_it_stops_before_the_first_exchange(tmp_path, monkeypatch, number, after, error, expected):
    """Rename 0 places the mark, rename 1 is the first file."""
    write_rows(tmp_path, "train", "tsv", range(3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stop_at(monkeypatch, number, error, after)
    with pytest.raises(expected):
        write_rows(tmp_path, "train", "tsv", range(5, 9))
    assert rows_of(tmp_path, "train") == ["sample_0", "sample_1", "sample_2"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("error, expected", STOPS)
def test_a_first_write_that_stops_before_the_exchange_leaves_nothing(tmp_path, monkeypatch, error, expected):
    stop_at(monkeypatch, 1, error)
    with pytest.raises(expected):
        write_rows(tmp_path, "train", "tsv", range(3))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error, expected", STOPS)
def test_the_mark_stays_once_a_file_was_exchanged(tmp_path, monkeypatch, error, expected):
    write_rows(tmp_path, "train", "tsv", range(7))
    stop_at(monkeypatch, 1, error, after=True)
    with pytest.raises(expected):
        write_rows(tmp_path, "train", "tsv", range(10, 17))
    with pytest.raises(ShardError, match="writing split 'train' was interrupted"):
        rows_of(tmp_path, "train")


class TestLeftovers:
    """Temporary files of writers that were killed."""

    def leave(self, root, pid, hours, split="train", number=0, writer="7f00"):
        path = root / f".{split}-{number:05d}.{pid}-{writer}.tmp"
        path.write_bytes(b"rows")
        os.utime(path, (time.time() - 3600 * hours,) * 2)
        return path

    @pytest.fixture
    def dead(self):
        process = multiprocessing.get_context("fork").Process(target=lambda: None)
        process.start()
        process.join()
        return process.pid

    def test_they_are_removed(self, tmp_path, dead):
        left = [self.leave(tmp_path, dead, 30), self.leave(tmp_path, dead, 26, number=1)]
        write_rows(tmp_path, "train", "tsv", range(2))
        assert not any(path.exists() for path in left)

    def test_those_of_a_running_process_stay(self, tmp_path):
        left = self.leave(tmp_path, os.getpid(), 1000)
        write_rows(tmp_path, "train", "tsv", range(2))
        assert left.exists()

    def test_those_of_another_user_stay(self, tmp_path, dead, monkeypatch):
        left = self.leave(tmp_path, dead, 1000)

        def refuse(pid, signal):
            raise PermissionError

        monkeypatch.setattr(os, "kill", refuse)
        write_rows(tmp_path, "train", "tsv", range(2))
        assert left.exists()

    def test_a_process_of_another_machine_may_still_write(self, tmp_path, dead):
        """It finished its first file long ago and is at the second."""
        left = [self.leave(tmp_path, dead, 50), self.leave(tmp_path, dead, 2, number=1)]
        write_rows(tmp_path, "train", "tsv", range(2))
        assert all(path.exists() for path in left)

    def test_those_of_other_splits_and_other_files_stay(self, tmp_path, dead):
        left = [self.leave(tmp_path, dead, 50, split=split) for split in ("val", "train-00000", "small-train")]
        left += [tmp_path / name for name in (".train-00000.tmp", "train-00000.1-a.tmp", ".train-00000.99999999999999-a.tmp")]
        for path in left[3:]:
            path.write_bytes(b"")
            os.utime(path, (0, 0))
        write_rows(tmp_path, "train", "tsv", range(2))
        assert all(path.exists() for path in left)

    def test_one_that_cannot_be_removed_does_not_stop_the_writer(self, tmp_path, dead):
        left = self.leave(tmp_path, dead, 50)
        left.unlink()
        left.mkdir()
        os.utime(left, (0, 0))
        write_rows(tmp_path, "train", "tsv", range(2))
        assert rows_of(tmp_path, "train") == ["sample_0", "sample_1"]


class TestRefused:
    def expect(self, tmp_path, match, *rows, columns=COLUMNS):
        with pytest.raises(ShardError, match=match):
            with writer(tmp_path, columns=columns) as out:
                for item in rows:
                    out.write(item)
        assert os.listdir(tmp_path) == []

    def test_no_row(self, tmp_path):
        self.expect(tmp_path, "no row was written")

    def test_repeated_id(self, tmp_path):
        self.expect(tmp_path, "row 1, column id: id 'sample_1' was written before", row(1), row(1))

    @pytest.mark.parametrize("name", ["", "tab\there", "line\nbreak", None, 1.5])
    def test_bad_id(self, tmp_path, name):
        self.expect(tmp_path, "column id: an id must be a non-empty string", row(1, id=name))

    def test_unknown_key(self, tmp_path):
        self.expect(tmp_path, "the row has mask, not among the columns", row(1, mask=b"x"))

    def test_missing_image(self, tmp_path):
        self.expect(tmp_path, "column image: expected the bytes of an image file, got None .sample 'sample_1'", row(1, image=None))

    def test_swapped_axes(self, tmp_path):
        swapped = make_row(1, height=9, width=5)["label_map"]
        self.expect(tmp_path, "column label_map: height x width 9x5, but the image has 5x9 .*swapped", row(1, label_map=swapped))

    def test_other_size(self, tmp_path):
        other = make_row(1, height=5, width=8)["label_map"]
        self.expect(tmp_path, "5x8, but the image has 5x9", row(1, label_map=other))

    def test_no_image_file(self, tmp_path):
        self.expect(tmp_path, "column image: not an image", row(1, image=b"<html>"))

    @pytest.mark.parametrize(
        "boxes",
        [[{"box": [0, 1, 2]}], [{"box": [0, 1, 2, float("nan")]}], [{"text": "no box"}], [{"box": [0, 0, 1, 1], "class_id": "x"}], 3],
    )
    def test_bad_boxes(self, tmp_path, boxes):
        self.expect(tmp_path, "row 0, column boxes", row(1, boxes=boxes), columns=(*COLUMNS, "boxes"))

    def test_captions_must_be_a_list(self, tmp_path):
        self.expect(tmp_path, "captions must be a list of strings", row(1, captions="one"), columns=(*COLUMNS, "captions"))

    def test_arguments(self, tmp_path):
        for arguments, match in (
            ({"format": "csv"}, "choose from tsv, parquet"),
            ({"columns": ("image",)}, "lack id"),
            ({"columns": ("image", "id", "mask")}, "unknown or repeated column"),
            ({"split": "a/b"}, "name of a split"),
            ({"rows_per_shard": 0}, "at least 1"),
        ):
            with pytest.raises(ShardError, match=match):
                writer(tmp_path, **arguments)

    def test_folder_of_other_classes_or_format(self, tmp_path):
        with writer(tmp_path, "train") as out:
            out.write(row(1))
        other = ClassVocabulary(names=("cat", "dog"))
        for changes, match in (({"vocabulary": other}, "names of the splits there .train."), ({"format": "parquet"}, "format of the")):
            with pytest.raises(ShardError, match=match):
                writer(tmp_path, "val", **changes)
        writer(tmp_path, "train", vocabulary=other).abort()  # replacing the only split is fine

    def test_root_is_a_file(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ShardError, match="cannot write"):
            writer(tmp_path / "file")


def test_shards_without_labels(tmp_path):
    with ShardWriter(tmp_path, "train", None, ("image", "id", "captions"), "parquet") as out:
        out.write({"id": 7, "image": codec.encode_image(np.zeros((2, 3), np.uint8)), "captions": ["grey"]})
    assert load_vocabulary(tmp_path) is None
    assert ShardReader.for_split(tmp_path, "train")[0]["id"] == "7"
