"""Writing a split: what is written, what is left after failures, and going on after a kill at any step."""

import errno
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from data_prep.source import SourceError
from data_prep.write_split import default_rows_per_shard
from ofaseg.data import parquet, tsv
from ofaseg.data.shards import ShardError, load_vocabulary
from ofaseg.data.verify import verify_shards
from tests.data_prep.toy_source import VOCABULARY, ToySource, content, ids, write

FORMATS = ("tsv", "parquet")
ALL = [f"sample_{i}" for i in range(10)]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written(tmp_path, format):
    summary = write(ToySource(), tmp_path, format=format)
    names = [f"train-0000{k}-of-00004.{format}" for k in range(4)]
    extra = [f"{name}.idx" for name in names] if format == "tsv" else []
    assert sorted(os.listdir(tmp_path)) == sorted([*names, *extra, "contact_sheet_train.png", "summary_train.json", "vocabulary.json"])
    assert ids(tmp_path) == ALL and verify_shards(tmp_path) == {"train": 10} and load_vocabulary(tmp_path) == VOCABULARY
    assert json.loads((tmp_path / "summary_train.json").read_text()) == summary
    assert summary["rows"] == 10 and summary["bytes"] == sum((tmp_path / name).stat().st_size for name in names)
    with Image.open(tmp_path / "contact_sheet_train.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > sheet.height > 100


def test_an_index_written_by_a_worker_is_used(tmp_path, caplog):
    write(ToySource(), tmp_path)
    with caplog.at_level(logging.INFO):
        assert ids(tmp_path) == ALL
    assert not caplog.records  # nothing was indexed again


def test_another_split_and_a_rewritten_one(tmp_path):
    write(ToySource(10), tmp_path)
    write(ToySource(4), tmp_path, "val")
    write(ToySource(5), tmp_path)
    assert len(ids(tmp_path)) == 5 and len(ids(tmp_path, "val")) == 4 and verify_shards(tmp_path) == {"val": 4, "train": 5}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".") or "of-00004" in name]


def test_rows_per_shard_follow_the_length_of_the_source():
    assert [default_rows_per_shard(n) for n in (1, 367, 2048, 6000, 118_287, 10**6)] == [64, 64, 64, 188, 3697, 5000]


def test_no_sample(tmp_path):
    with pytest.raises(SourceError, match="split 'train' has no sample"):
        write(ToySource(0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class TestBadSamples:
    def test_raise(self, tmp_path):
        with pytest.raises(SourceError, match=r"raw/1.raw: damaged; copy it again"):
            write(ToySource(bad=[1]), tmp_path)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("format", FORMATS)
    def test_skip(self, tmp_path, format, caplog):
        """Shards 1 (samples 3, 4, 5) is empty, so there are three files of the ten samples."""
        bad = [1, 3, 4, 5, 9]
        summary = write(ToySource(11, bad=bad), tmp_path, format=format, skip_bad=True)
        assert ids(tmp_path) == [f"sample_{i}" for i in range(11) if i not in bad] and summary["files"] == 3
        assert summary["skipped"] == [{"sample": f"raw/{i}.raw", "reason": f"raw/{i}.raw: damaged; copy it again"} for i in bad]
        assert [record.getMessage() for record in caplog.records] == [f"skipped: raw/{i}.raw: damaged; copy it again" for i in bad]

    def test_all_bad(self, tmp_path):
        with pytest.raises(SourceError, match="all 7 samples of split 'train' are bad, the first one: raw/0.raw: damaged"):
            write(ToySource(7, bad=range(7)), tmp_path, skip_bad=True)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("second", [2, 7])
    def test_two_samples_with_one_id(self, tmp_path, second):
        """In one file or in two: both are named, and skipping does not hide it."""
        with pytest.raises(ShardError, match=f"raw/{second}.raw, column id: id 'sample_1' is also that of raw/1.raw; give every"):
            write(ToySource(ids={second: "sample_1"}), tmp_path, skip_bad=True)
        assert not [name for name in os.listdir(tmp_path) if not name.startswith(".")]


class TestDisk:
    """Nothing half-written is left, there is one message, and --resume goes on when the disk is well again."""

    def check(self, out, fail, message):
        with pytest.raises(ShardError, match=message):
            fail()
        visible = [name for name in os.listdir(out) if not name.startswith(".")]
        assert not visible and not list(Path(out).rglob("*.part")) and not list(Path(out).rglob("*.tmp"))

    @pytest.mark.parametrize("format, part", [("tsv", tsv.TsvPart), ("parquet", parquet.ParquetPart)])
    @pytest.mark.parametrize("method", ["write", "close", "renamed"])
    def test_full(self, tmp_path, monkeypatch, format, part, method):
        calls = iter(range(100))
        real = getattr(part, method)

        def full(self, *arguments):
            if next(calls) >= 2 + 3 * (method == "write"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(self, *arguments)

        monkeypatch.setattr(part, method, full)
        self.check(tmp_path, lambda: write(ToySource(), tmp_path, format=format), "cannot write .No space left on device.; free some space")
        monkeypatch.undo()
        write(ToySource(), tmp_path, format=format, resume=True)
        assert ids(tmp_path) == ALL

    @pytest.mark.parametrize("format", FORMATS)
    def test_a_limit_of_the_system(self, tmp_path, format):
        """The limit on file sizes makes real writes fail in the middle; in a child, for it cannot be raised again."""

        def child():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
            self.check(tmp_path, lambda: write(ToySource(), tmp_path, format=format, rows_per_shard=20), "File too large.; write smaller")

        assert run_in_child(child) == 0 and os.listdir(tmp_path) == []

    def test_a_folder_that_cannot_be_written(self, tmp_path, monkeypatch):
        def refuse(self, *args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

        write(ToySource(), tmp_path)
        before = content(tmp_path)
        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(ShardError, match="cannot write .Permission denied.; choose a writable folder"):
            write(ToySource(4), tmp_path)
        assert content(tmp_path) == before and len(ids(tmp_path)) == 10


def run_in_child(function) -> int:
    """The exit code of a forked process that runs `function`; negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join()
    return process.exitcode


def killed_at(step: int, function) -> bool:
    """Runs `function` in a child that is killed before its file system step number `step` (from 0); False when it has fewer."""

    def child():
        left = iter(range(step))
        for name in ("replace", "unlink", "fsync", "mkdir", "rmdir", "open"):
            real = getattr(os, name)

            def counted(*args, real=real, **kwargs):
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            setattr(os, name, counted)
        logging.disable()
        function()

    code = run_in_child(child)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def old_or_new(out, old: list[str], new: list[str]) -> None:
    """Readers of a folder where a writer was killed get the old rows, the new ones, or the advice to write again."""
    try:
        assert ids(out) in (old, new)
    except ShardError as error:
        assert "writing split 'train' was interrupted" in str(error)


SKIPPING = {"skip_bad": True}
SOURCE = ToySource(8, bad=[1, 3, 4, 5])
NEW = [f"sample_{i}" for i in (0, 2, 6, 7)]


@pytest.fixture(scope="module", params=["tsv", "parquet"])
def undisturbed(request, tmp_path_factory):
    """(format, folder with two old rows, content of that folder after it was written again)."""
    root = tmp_path_factory.mktemp("undisturbed")
    write(ToySource(2), root / "old", format=request.param)
    shutil.copytree(root / "old", root / "new")
    write(SOURCE, root / "new", format=request.param, **SKIPPING)
    return request.param, root / "old", content(root / "new")


@pytest.mark.slow
def test_a_kill_at_every_step(undisturbed, tmp_path):
    """The old rows stay, or the new ones are there; going on gives, byte for byte, what an undisturbed run does."""
    format, old, expected = undisturbed
    for step in range(500):
        out = tmp_path / str(step)
        shutil.copytree(old, out)
        killed = killed_at(step, lambda out=out: write(SOURCE, out, format=format, **SKIPPING))
        old_or_new(out, ["sample_0", "sample_1"], NEW)
        write(SOURCE, out, format=format, resume=True, **SKIPPING)
        assert content(out) == expected and ids(out) == NEW, f"step {step}"
        assert not [name for name in os.listdir(out) if name.startswith(".")], f"step {step}"
        if not killed:
            break
    assert not killed and step >= 50


@pytest.mark.slow
def test_kills_one_after_another(undisturbed, tmp_path):
    """Each run goes on where the killed one before stopped, and is killed itself, at random steps."""
    format, old, expected = undisturbed
    chooser = random.Random(7)
    kills = 0
    for trial in range(4):
        out = tmp_path / str(trial)
        shutil.copytree(old, out)
        resume = {"resume": False}
        while killed_at(chooser.randrange(5, 60), lambda out=out, r=resume: write(SOURCE, out, format=format, **r, **SKIPPING)):
            resume = {"resume": True}
            kills += 1
        assert content(out) == expected and ids(out) == NEW
    assert kills > 4


class TestResume:
    def leave_unfinished(self, out, source=None, **options):
        """A run that stops at sample 7, when two of four shards are finished."""
        with pytest.raises(SourceError):
            write(source or ToySource(bad=[7]), out, **options)
        assert (out / ".train.unfinished" / "00001.json").exists()

    def test_finished_shards_are_not_read_again(self, tmp_path, monkeypatch):
        self.leave_unfinished(tmp_path)
        read, real = [], ToySource.__getitem__
        monkeypatch.setattr(ToySource, "__getitem__", lambda self, i: read.append(i) or real(self, i))
        write(ToySource(), tmp_path, resume=True)
        assert read == [6, 7, 8, 9] and ids(tmp_path) == ALL

    @pytest.mark.parametrize(
        "source, options, message",
        [
            (ToySource(), {"rows_per_shard": 2}, "rows_per_shard 3 there, 2 now"),
            (ToySource(), {"format": "parquet"}, "format 'tsv' there, 'parquet' now"),
            (ToySource(), {"skip_bad": True}, "skip_bad False there, True now"),
            (ToySource(9), {}, "samples 10 there, 9 now, the names of its samples differ"),
            (ToySource(folder="elsewhere"), {}, "another one .the names of its samples differ.; give the same source and options"),
            (ToySource(), {"dataset_options": {"seed": 2}}, "its options differ"),
        ],
    )
    def test_another_source_or_other_options_are_refused(self, tmp_path, source, options, message):
        self.leave_unfinished(tmp_path)
        with pytest.raises(ShardError, match=message):
            write(source, tmp_path, resume=True, **options)
        write(ToySource(), tmp_path, resume=True)  # the refusal took nothing away
        assert ids(tmp_path) == ALL

    def test_without_resume_leftovers_are_told_about_and_replaced(self, tmp_path, caplog):
        self.leave_unfinished(tmp_path)
        assert "2 of 4 shards are finished; --resume goes on from there" in caplog.text
        write(ToySource(5), tmp_path, rows_per_shard=2)
        assert "an unfinished run (2 finished shards) is replaced; --resume would go on with it" in caplog.text
        assert ids(tmp_path) == ALL[:5] and not (tmp_path / ".train.unfinished").exists()

    def test_a_shard_whose_raw_file_changed_is_written_again(self, tmp_path, monkeypatch, caplog):
        raw = tmp_path / "raw"
        raw.mkdir()
        for i in range(10):
            (raw / f"{i}.raw").write_text("old")
        self.leave_unfinished(tmp_path / "out", ToySource(folder=raw, bad=[7]))
        (raw / "4.raw").write_text("changed")
        (raw / "8.raw").write_text("of an unfinished shard")
        read, real = [], ToySource.__getitem__
        monkeypatch.setattr(ToySource, "__getitem__", lambda self, i: read.append(i) or real(self, i))
        write(ToySource(folder=raw), tmp_path / "out", resume=True)
        assert read == [3, 4, 5, 6, 7, 8, 9] and "shard 1: its raw files have changed" in caplog.text

    def test_a_complete_split_is_kept(self, tmp_path, monkeypatch, caplog):
        summary = write(ToySource(), tmp_path)
        before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
        monkeypatch.setattr(ToySource, "__getitem__", None)
        with caplog.at_level(logging.INFO):
            assert write(ToySource(), tmp_path, resume=True) == summary
        assert "train: complete, kept as it is" in caplog.text
        assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before

    def test_a_complete_split_of_other_files_is_written_again(self, tmp_path):
        write(ToySource(), tmp_path)
        write(ToySource(9), tmp_path, resume=True)
        assert ids(tmp_path) == ALL[:9]
        (tmp_path / "train-00001-of-00003.tsv").unlink()
        write(ToySource(9), tmp_path, resume=True)
        assert ids(tmp_path) == ALL[:9]

    def test_a_damaged_record(self, tmp_path, caplog):
        self.leave_unfinished(tmp_path)
        (tmp_path / ".train.unfinished" / "00000.json").write_text('{"ids": [')
        (tmp_path / ".train.unfinished" / "00001.tsv").write_bytes(b"short")
        write(ToySource(), tmp_path, resume=True)
        assert ids(tmp_path) == ALL and verify_shards(tmp_path) == {"train": 10} and "00000.json: damaged" in caplog.text

    def test_a_damaged_plan(self, tmp_path):
        self.leave_unfinished(tmp_path)
        (tmp_path / ".train.unfinished" / "plan.json").write_text("{")
        with pytest.raises(ShardError, match="plan.json: damaged .*leave out --resume"):
            write(ToySource(), tmp_path, resume=True)
        write(ToySource(), tmp_path)
        assert ids(tmp_path) == ALL
