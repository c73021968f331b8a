"""Writes the shards of a plan as a Ray Data job, on one machine or on a cluster whose machines share the folders.

The job of each task is that of a local worker (`shard_work.write_shard`), so the files are the same, byte for byte.
"""

import contextlib
import logging
import os
from dataclasses import replace
from typing import Callable, Iterable, Sequence

from data_prep.shard_work import ShardPlan, write_shard
from data_prep.source import SourceError
from ofaseg.data.rows import ShardError

_STOP_FILE = "stop"
_OBJECT_STORE_BYTES = 256 << 20  # shards go to files, so little more than the plan passes through it


class _StoppedError(Exception):
    """Another task failed."""


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
    plan = replace(plan, folder=plan.folder.absolute())
    with _cluster(ray, workers):
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of ours
        items = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        tasks = ray.data.TaskPoolStrategy(size=min(workers, len(numbers)))
        job = items.map(lambda item: _write(plan, item["number"]), num_cpus=1, compute=tasks)
        try:
            _wait_for(job.iter_rows(), plan, advance, done)
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ShardError.at(plan.folder, f"a Ray task died ({reason}); call again with --resume and fewer --workers") from error
        except BaseException:
            with contextlib.suppress(OSError):
                (plan.folder / _STOP_FILE).touch()
            raise


def _wait_for(results: Iterable[dict], plan: ShardPlan, advance: Callable[[int], None], done: Callable[[int], None]) -> None:
    """Follows the results of `_write`; raises the first error when every task has ended."""
    errors = []
    for result in results:
        number = int(result["number"])
        if result["error"]:
            errors.append(result["error"])
        elif result["written"]:
            advance(len(plan.samples(number)))
            done(number)
    if errors:
        raise ShardError(errors[0])


def _write(plan: ShardPlan, number: int) -> dict:
    """Writes a shard in a task; an error that is no bug comes back as its message and stops the other tasks."""
    stop = plan.folder / _STOP_FILE

    def tick() -> None:
        if stop.exists():
            raise _StoppedError

    try:
        write_shard(plan, number, tick)
    except _StoppedError:
        return {"number": number, "written": False, "error": ""}
    except (SourceError, ShardError) as error:
        with contextlib.suppress(OSError):
            stop.touch()
        return {"number": number, "written": False, "error": str(error)}
    return {"number": number, "written": True, "error": ""}


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
