"""Writes the shards of a plan with the cores of this machine."""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Callable, Optional, Sequence

import cv2

from data_prep.shard_work import ShardPlan, write_shard
from ofaseg.data.rows import ShardError

_POLL_SECONDS = 0.2


class _StoppedError(Exception):
    """Another shard failed, or the user stopped the run."""


def usable_cores() -> int:
    """The cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def write_shards(
    plan: ShardPlan, numbers: Sequence[int], workers: int, advance: Callable[[int], None], done: Callable[[int], None]
) -> None:
    """Writes the shards `numbers` of a plan, in any order.

    Args:
        workers: processes to use, at least 1; each holds one row, or one row group of Parquet, in memory.
        advance: called with the number of further samples that were read.
        done: called with the number of each shard that is finished.

    Raises:
        BadSampleError, ShardError: as `write_shard`; the finished shards stay.
        ShardError: a worker was killed.
    """
    if min(workers, len(numbers)) <= 1:
        for number in numbers:
            write_shard(plan, number, lambda: advance(1))
            done(number)
        return
    context, workers = _context(), min(workers, len(numbers))
    # without locks, which a killed worker could keep
    counts, stop = context.RawArray("q", workers), context.RawValue("b", 0)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (plan, context.Value("i", 0), counts, stop))
    try:
        _wait_for({pool.submit(_write, number): number for number in numbers}, counts, advance, done)
    except BrokenProcessPool as error:
        problem = "a worker process died (killed, or out of memory); the finished shards are kept"
        raise ShardError.at(plan.folder, f"{problem}: call again with --resume and fewer --workers") from error
    except BaseException:
        stop.value = 1
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _wait_for(futures: dict, counts, advance, done) -> None:
    left, seen = set(futures), 0
    while left:
        finished, left = wait(left, _POLL_SECONDS, FIRST_COMPLETED)
        now = sum(counts)
        advance(now - seen)
        seen = now
        for future in finished:
            future.result()
            done(futures[future])


def _context():
    """Workers are forked from a server that has imported this module once: quick to start, sharing its memory, and without
    the threads of this process."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # the server looks modules up by itself: it has to find the code that runs here, not another copy
    with _environment(PYTHONPATH=os.pathsep.join(path or os.getcwd() for path in sys.path), PYTHONSAFEPATH="1"):
        multiprocessing.forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _environment(**values: str):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_tick: Callable[[], None]
_plan: Optional[ShardPlan] = None


def _start_worker(plan: ShardPlan, next_slot, counts, stop) -> None:
    """Runs once in each worker process, which counts its samples in a slot of its own."""
    global _plan, _tick
    with next_slot.get_lock():
        slot, next_slot.value = next_slot.value, next_slot.value + 1

    def tick() -> None:
        if stop.value:
            raise _StoppedError
        counts[slot] += 1

    _plan, _tick = plan, tick
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process decides
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_the_first_process, daemon=True).start()


def _end_with_the_first_process() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write(number: int) -> None:
    write_shard(_plan, number, _tick)
