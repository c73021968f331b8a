"""Several processes: the files of one, and one clear end when a worker fails or is killed."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import engine
from data_prep.shapes import ShapesSource
from data_prep.shard_work import BadSampleError, ShardPlan
from ofaseg.data.shards import ShardError
from tests.data_prep.toy_source import ToySource, content, ids, write

ROOT = Path(__file__).resolve().parents[2]


def parts(out) -> list[str]:
    return [path.name for path in Path(out).rglob("*.part")]


class TestWorkers:
    """Local workers, whose server takes some seconds to start: it is shared by the tests of this class."""

    @pytest.mark.parametrize("format", ["tsv", "parquet"])
    def test_the_files_do_not_depend_on_the_number_of_workers(self, tmp_path, format):
        for workers in (1, 3):
            write(ToySource(40, bad=[5, 21]), tmp_path / str(workers), format=format, workers=workers, skip_bad=True)
        assert content(tmp_path / "1") == content(tmp_path / "3") and len(ids(tmp_path / "3")) == 38

    def test_a_killed_worker_is_told_and_the_run_goes_on(self, tmp_path):
        source = ToySource(40, folder=tmp_path, killed_once=25)
        with pytest.raises(ShardError, match="a worker process died .killed, or out of memory.*--resume and fewer --workers"):
            write(source, tmp_path / "out", workers=2)
        write(source, tmp_path / "out", workers=2, resume=True)
        write(ToySource(40, folder=tmp_path), tmp_path / "undisturbed")
        assert content(tmp_path / "out") == content(tmp_path / "undisturbed")

    def test_a_bad_sample_stops_all(self, tmp_path):
        with pytest.raises(BadSampleError, match="raw/20.raw: damaged"):
            write(ToySource(4000, bad=[20]), tmp_path, workers=2)
        assert not parts(tmp_path) and len(list(tmp_path.glob(".train.unfinished/*.tsv"))) < 1000

    def test_an_interrupt_stops_all(self, tmp_path):
        def interrupt(count):
            if count:
                raise KeyboardInterrupt

        plan = ShardPlan(ToySource(4000), tmp_path, ("image", "label_map", "id"), "tsv", 500)
        with pytest.raises(KeyboardInterrupt):
            engine.write_shards(plan, range(8), 2, interrupt, lambda number: None)
        assert not parts(tmp_path) and len(list(tmp_path.glob("*.tsv"))) < 8


def test_one_worker_needs_no_other_process(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_context", None)
    write(ToySource(), tmp_path, workers=1)
    write(ToySource(), tmp_path, workers=4, rows_per_shard=20)
    assert len(ids(tmp_path)) == 10


def test_usable_cores(monkeypatch):
    assert 1 <= engine.usable_cores() <= os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7})
    assert engine.usable_cores() == 3


@pytest.mark.slow
def test_the_whole_group_is_killed_twice(tmp_path):
    """The command with two workers, killed with them as soon as 2 and 5 of 10 shards are finished, then called a third time."""
    command = [sys.executable, "-m", "data_prep.prepare", "shapes", "--splits", "val", "--num", "200", "--rows-per-shard", "20"]
    command += ["--workers", "2", "--format", "tsv", "--out"]
    out = tmp_path / "out"
    for count in (2, 5):
        process = subprocess.Popen([*command, str(out), "--resume"], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(list(out.glob(".val.unfinished/0*.json"))) < count and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, 9)
        process.communicate()
        assert not (out / "vocabulary.json").exists()
    subprocess.run([*command, str(out), "--resume"], cwd=ROOT, check=True, capture_output=True)
    write(ShapesSource("val", 200), tmp_path / "undisturbed", "val", rows_per_shard=20)
    written = content(out)
    assert written.pop("croissant.json"), "the command describes the folder, the function below it does not"
    assert written == content(tmp_path / "undisturbed") and len(ids(out, "val")) == 200


@pytest.mark.slow
def test_workers_run_the_code_of_the_command(tmp_path):
    """The command of a copy, called from this checkout: no worker may find the modules here, or those that are installed."""
    for name in ("ofaseg", "user_tasks", "criterions", "data_prep"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    changed = tmp_path / "data_prep" / "shapes.py"
    changed.write_text(changed.read_text().replace('f"{split}-{seed}-', 'f"copy-{split}-{seed}-'))
    command = [sys.executable, str(tmp_path / "data_prep" / "prepare.py"), "shapes", "--splits", "val", "--num", "6"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    options = ["--rows-per-shard", "2", "--workers", "2", "--out", str(tmp_path / "out")]
    subprocess.run([*command, *options], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert ids(tmp_path / "out", "val") == [f"copy-val-1-{i:06d}" for i in range(6)]
