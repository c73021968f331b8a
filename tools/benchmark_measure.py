"""A fresh process that measures one case for `tools/benchmark.py`: `python -m tools.benchmark_measure '{"model": "nano", ...}'`.

A request is a JSON object; the answer is one JSON line on standard output. ``mode`` "time" may check that the paths compute
the same, then times them in turn; "peak" runs one path twice and reads the highest memory of the process.
"""

import ctypes
import json
import logging
import sys
import time
from pathlib import Path
from statistics import median

import torch

from tools.benchmark_cases import CASES, SETUPS, Bench


def seconds(run, device: torch.device) -> float:
    """Seconds of one call: wall clock on the CPU, events on a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def matrix_rate(device: torch.device, size: int = 2048) -> float:
    """GFLOP/s of a float32 product of two size x size matrices."""
    left, right = (torch.ones(size, size, device=device) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, device) / 1e9


def memory(field: str) -> float:
    """MB of this process: "VmRSS" now, or "VmHWM", the highest since the start (or since `reset_peak`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def reset_peak() -> None:
    """Gives freed memory back and lets the process's highest memory start anew (where the kernel refuses, it goes on)."""
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def time_paths(bench: Bench, case: str, repeats: int, least_seconds: float = 2.0) -> dict:
    """Times all paths of a case in turn: at least `repeats` rounds and, for quick cases, `least_seconds`."""
    result = {"seconds": {path: [] for path in CASES[case]}, "gflops": []}
    runners = {path: bench.runner(case, path) for path in CASES[case]}
    matrix_rate(bench.device)
    for run in runners.values():
        run()
    begin = time.perf_counter()
    while len(result["gflops"]) < repeats or (time.perf_counter() - begin < least_seconds and len(result["gflops"]) < 50):
        result["gflops"].append(matrix_rate(bench.device))
        for path, run in runners.items():
            result["seconds"][path].append(seconds(run, bench.device))
    result["gflops"] = median(result["gflops"])
    return result


def peak_of_path(bench: Bench, case: str, path: str) -> dict:
    """{"peak", "start"} in MB: highest memory over two iterations, and the memory before them (weights and inputs are there)."""
    run = bench.runner(case, path)
    if bench.device.type == "cuda":
        start = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
        start = memory("VmRSS")
    for _ in range(2):
        run()
    peak = torch.cuda.max_memory_allocated() / 2**20 if bench.device.type == "cuda" else memory("VmHWM")
    return {"peak": peak, "start": start}


def answer(request: dict) -> dict:
    """Runs a request: model, case, device, mode ("time" with repeats and whether to check first, or "peak" with path)."""
    device = request["device"]
    bench = Bench(SETUPS[request["model"]], device)
    if request["mode"] == "peak":
        result = peak_of_path(bench, request["case"], request["path"])
    else:
        errors = bench.check(request["case"]) if request["check"] else {}
        result = {"errors": errors} | time_paths(bench, request["case"], request["repeats"])
    return result | {"torch": torch.__version__, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG
    print(json.dumps(answer(json.loads(sys.argv[1]))))
