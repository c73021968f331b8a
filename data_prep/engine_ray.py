"""Writes the shards of a plan as a Ray Data job, on one machine or on a cluster whose machines share the folders.

The job of each task is that of a local worker (`shard_work.write_shard`), so the files are the same, byte for byte.
"""

import contextlib
import logging
import os
from dataclasses import replace
from typing import Callable, Sequence

from data_prep.shard_work import ShardPlan, write_shard
from data_prep.source import SourceError
from ofaseg.data.rows import ShardError

_OBJECT_STORE_BYTES = 256 << 20  # shards go to files, so little more than the plan passes through it


def write_shards(
    plan: ShardPlan, numbers: Sequence[int], workers: int, advance: Callable[[int], None], done: Callable[[int], None]
) -> None:
    """As `engine.write_shards`, on the Ray cluster this process is connected to, that of $RAY_ADDRESS, or one started here.

    Raises:
        ShardError: Ray is not installed, a bad sample, the disk fails, or a task died repeatedly.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ShardError("--engine ray needs Ray on every machine of the cluster: pip install 'ofaseg[ray]'") from error
    if not numbers:
        return
    with _cluster(ray, workers):
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        shared = ray.put(replace(plan, folder=plan.folder.absolute()))

        def write(item: dict) -> dict:
            return {"number": item["number"], "error": _write(ray.get(shared), item["number"])}

        items = [{"number": number} for number in numbers]
        job = ray.data.from_items(items, override_num_blocks=len(items)).map(write, num_cpus=1, concurrency=min(workers, len(items)))
        try:
            for result in job.iter_rows():
                if result["error"]:
                    raise ShardError(result["error"])
                advance(len(plan.samples(int(result["number"]))))
                done(int(result["number"]))
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ShardError.at(plan.folder, f"a Ray task died ({reason}); call again with --resume and fewer --workers") from error


def _write(plan: ShardPlan, number: int) -> str:
    """Writes a shard; returns the message of an error that is no bug, since Ray would wrap the exception."""
    try:
        write_shard(plan, number, lambda: None)
    except (SourceError, ShardError) as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _cluster(ray, workers: int):
    """Connects to a cluster, or starts one on this machine for the duration of the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        local = {"address": "local", "num_cpus": workers, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        ray.init(**local, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()
