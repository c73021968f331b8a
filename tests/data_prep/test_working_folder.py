"""The working folder: one process at a time, and descriptions that tell one plan from another."""

import json
import multiprocessing
import os

import pytest

from data_prep.shard_work import ShardPlan, write_shard
from data_prep.working_folder import WorkingFolder, describe_plan, folder_of
from ofaseg.data.shards import ShardError
from tests.data_prep.toy_source import ToySource

COLUMNS = ("image", "label_map", "id")


def open_folder(out, resume=False, **source):
    plan = ShardPlan(ToySource(**source), folder_of(out, "train"), COLUMNS, "tsv", 3)
    return WorkingFolder(plan, describe_plan(plan, {}), resume)


def test_one_process_at_a_time(tmp_path):
    def second():
        with pytest.raises(ShardError, match=".train.unfinished: another process is writing this split; wait for it, or end it"):
            with open_folder(tmp_path):
                pass

    with open_folder(tmp_path) as folder:
        write_shard(folder.plan, 2, lambda: None)
        process = multiprocessing.get_context("fork").Process(target=second)
        process.start()
        process.join()
        assert process.exitcode == 0 and folder.pending() == [0, 1, 3]
    with open_folder(tmp_path, resume=True) as folder:
        assert folder.pending() == [0, 1, 3]


def test_a_folder_without_a_finished_shard_goes(tmp_path):
    with open_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_all_shards_in_order(tmp_path):
    with open_folder(tmp_path) as folder:
        for number in (3, 1, 0):
            write_shard(folder.plan, number, lambda: None)
        assert folder.finished() is None
        write_shard(folder.plan, 2, lambda: None)
        shards = folder.finished()
    assert [sample for shard in shards for sample in shard.samples] == list(range(10))
    assert [name for shard in shards for name in shard.ids] == [f"sample_{i}" for i in range(10)]
    assert [shard.statistics.rows for shard in shards] == [3, 3, 3, 1] and shards[0].bytes == shards[0].path.stat().st_size


def test_files_of_killed_workers_go(tmp_path):
    with open_folder(tmp_path) as folder:
        write_shard(folder.plan, 0, lambda: None)
        for name in ("00001-ab12.part", "00001.tsv", "00001.tsv.idx", ".00001.json.x1.tmp"):
            (folder.path / name).write_bytes(b"half")
    with open_folder(tmp_path, resume=True) as folder:
        assert sorted(os.listdir(folder.path)) == ["00000.json", "00000.tsv", "00000.tsv.idx", "plan.json"]


def test_descriptions():
    def description(options=None, **source):
        return describe_plan(ShardPlan(ToySource(**source), folder_of("out", "train"), COLUMNS, "tsv", 3), options or {})

    assert description() == description(bad=[3]) == json.loads(json.dumps(description()))
    others = [description({"a": 1}), description({"a": (1, 2)}), description(num=9), description(folder="x")]
    assert all(other != description() for other in others) and others[1] == json.loads(json.dumps(others[1]))
