"""Speed and memory of IFSeg, SimSeg, Fusioner and FreeSeg, ours against plain versions of the published computation, on this machine.

    python tools/benchmark.py [--models nano,tiny,base | --full] [--cases step,supervised,evaluate,data,simseg,...] [--repeats N]

Every measurement runs in a fresh process. Times: both paths take turns in one process, after a check that they compute the
same. Memory: one process per path. Both are repeated with the C library's allocator as it is and with settings that keep
freed memory. The result replaces its section of a Markdown file; other sections stay.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Sequence

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import benchmark_data, benchmark_simseg  # noqa: E402
from tools.benchmark_cases import CASES, SETUPS  # noqa: E402

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**26)}
ALLOCATORS = {"default": {}, "keep": KEEP_MEMORY}

CASE_NAMES = {
    "step": "image-free training step",
    "supervised": "supervised training step",
    "evaluate": "validation of one photo",
    "predict": "prediction of one photo",
}

CASE_GROUPS = ("step", "supervised", "evaluate", "data", "simseg", "fusioner", "freeseg")
METHODS = {"simseg": "SimSeg", "fusioner": "Fusioner", "freeseg": "FreeSeg"}
"""Cases with a module `tools.benchmark_<case>` of their own -> what they are called."""

INTRODUCTION = """# Benchmarks

Written by `python tools/benchmark.py` (`make bench`); every section below is one run.

**Ours** is what `fairseq-train`, validation and `ofaseg predict` run. The **reference** (`tools/benchmark_reference.py`) is a
plain eager implementation of what the published code computes, over the same weights in the same process: bias tables
gathered in every layer and resized twice, biases repeated for every sample, attention as matrix products around a float32
softmax with padded keys filled in, a copy of the word embeddings per pass, scores upsampled to all pixels, permuted,
flattened and masked, fairseq's Adam. Unused targets and averaged cross-attention maps are left out of it; it takes less
time than the original, measured elsewhere (below). The *display pass* is the forward pass over real photos that published
image-free training adds to every step for its curves: "reference with display pass" is the published step; ours leaves that
pass out unless it is asked for.

- Steps are forward, loss, backward, gradient clipping and Adam, with dropout, in float32; the image encoder and the
  embeddings are frozen, as in the published runs. Validation makes the loss, the raw and the propagated label map (25
  iterations, 3 neighbours) at 512 x 683 and counts them; prediction makes the propagated map alone. Our evaluation keeps
  attention biases between photos of one size; *new size* is the first photo of a size.
- **[s x GFLOP/s]** is the time multiplied by the float32 matrix rate (2048 cubed) that the same process reached between the
  measurements; it compares across machines. For orientation, the published code measured elsewhere: tiny step 1,251 (815
  without the display pass), base step 8,790 (6,219), validation 233 (tiny) and 2,256 (base), 27-30 training rows/s.
- **Peak** is the highest resident memory of the whole process over two iterations (Python, torch and weights included);
  **above start** leaves out what was resident before the first of them. On a GPU both are the caching allocator's.
- Allocator *default* is the C library as it is; *keep* sets `MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_` and
  `MALLOC_TOP_PAD_` high before the process starts, so that freed memory stays mapped.
- **Rows**: the JPEG decoder sets the pace; no reader of whole photos is faster than it. The goal is 500 augmented rows/s per core,
  at least 350, set where 640x480 photos decode at 950 a second.
"""


class BenchmarkError(RuntimeError):
    """A measuring process failed, or its two paths disagree."""


def child(module: str, request: dict, environment: dict[str, str]) -> dict:
    """Runs a request in a fresh process of `module` and returns its answer.

    Raises:
        BenchmarkError: the process failed; the message holds the end of its output.
    """
    command = [sys.executable, "-m", module, json.dumps(request)]
    clean = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    done = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"measuring {request} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(model: str, case: str, device: str, allocator: str, repeats: int, check: bool = True) -> dict:
    """Times and peaks of all paths of a case: {"gflops", "errors" (empty without `check`), "threads", "torch", "paths": {path: {...}}}."""
    base = {"model": model, "case": case, "device": device}
    timed = child("tools.benchmark_measure", base | {"mode": "time", "repeats": repeats, "check": check}, ALLOCATORS[allocator])
    result = {name: timed[name] for name in ("gflops", "errors", "threads", "torch")} | {"paths": {}}
    result.update(model=model, case=case, allocator=allocator)
    for path in CASES[case]:
        peak = child("tools.benchmark_measure", base | {"mode": "peak", "path": path}, ALLOCATORS[allocator])
        result["paths"][path] = {"seconds": median(timed["seconds"][path]), "peak": peak["peak"], "start": peak["start"]}
    return result


def describe(result: dict) -> str:
    """One line for the terminal."""
    paths = "; ".join(f"{path} {value['seconds']:.3f} s, {value['peak']:.0f} MB" for path, value in result["paths"].items())
    errors = ", ".join(f"{name} {error:.0e}" for name, error in result["errors"].items())
    line = f"{result['model']} {CASE_NAMES[result['case']]} ({result['allocator']}): {paths}"
    return line + (f"\n  both paths agree: differences {errors}" if errors else "")


def table(results: list[dict]) -> list[str]:
    """Markdown rows of the measured paths."""
    lines = [
        "| model | work | allocator | path | seconds | [s x GFLOP/s] | times ours | peak MB | above start MB | times ours: peak, above |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours = result["paths"]["ours"]
        for path, value in result["paths"].items():
            above, own_above = value["peak"] - value["start"], max(ours["peak"] - ours["start"], 1.0)
            cells = [result["model"], CASE_NAMES[result["case"]], result["allocator"]] if path == "ours" else ["", "", ""]
            cells += [path, f"{value['seconds']:.3g}", f"{value['seconds'] * result['gflops']:,.3g}"]
            cells += [f"{value['seconds'] / ours['seconds']:.2f}", f"{value['peak']:,.0f}", f"{above:,.0f}"]
            cells += ["" if path == "ours" else f"{value['peak'] / ours['peak']:.2f} / {above / own_above:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def processor() -> str:
    """Name of the CPU and its number of cores usable here."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def conditions(results: list[dict]) -> list[str]:
    """Lines on the setting of the measurements and on how well the paths agreed."""
    errors = [(name, error) for result in results for name, error in result["errors"].items()]
    worst = max((error for name, error in errors if "pixels" not in name), default=0.0)
    pixels = max((error for name, error in errors if "pixels" in name), default=0.0)
    rate = median(result["gflops"] for result in results)
    models = {result["model"]: SETUPS[result["model"]] for result in results}
    batches = [f"{name}: {setup.side} px, batch {setup.batch}, {setup.classes} classes" for name, setup in models.items()]
    return [
        f"- torch {results[0]['torch']}, {results[0]['threads']} threads, matrix rate {rate:,.0f} GFLOP/s",
        f"- checked before timing: logits, losses and gradient norms of the two paths differ by at most {worst:.0e} of the "
        f"largest value, label maps in {100 * pixels:.3f} % of the pixels",
        f"- {'; '.join(batches)}; validation and prediction one photo at a time",
    ]


def section(title: str, machine: str, command: str, results: list[dict], data: dict, rows: Sequence[dict] = ()) -> str:
    """The Markdown section of one run."""
    lines = [f"## {title}", "", f"- date: {datetime.date.today().isoformat()}", f"- machine: {machine}", f"- command: `{command}`"]
    if results:
        lines += [*conditions(results), "", *table(results)]
    if data:
        lines += benchmark_data.tables(data)
    if rows:
        lines += ["", *benchmark_simseg.table(rows)]
    return "\n".join(lines) + "\n"


def with_section(text: str, key: str, body: str) -> str:
    """`text` with the section called `key` replaced, or added at the end."""
    begin, end = f"<!-- begin {key} -->\n", f"<!-- end {key} -->\n"
    block = begin + body + end
    if begin in text and end in text:
        return text[: text.index(begin)] + block + text[text.index(end) + len(end) :]
    return text.rstrip("\n") + "\n\n" + block


def write_section(path: Path, key: str, body: str) -> None:
    """Updates the section called `key` in the Markdown file at `path`, which is begun with the introduction when missing."""
    from ofaseg.atomic import atomic_write

    text = path.read_text(encoding="utf-8") if path.exists() else INTRODUCTION
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(with_section(text, key, body))


def comma_list(text: str, known: tuple[str, ...], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise SystemExit(f"{option} {text!r}: give one or more of {', '.join(known)}, separated by commas")
    return names


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="nano,tiny", help=f"of {', '.join(SETUPS)}; base takes long (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="all models")
    parser.add_argument("--cases", default=",".join(CASE_GROUPS), help="default: all of them")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that are timed at least (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=48, help="rows of the data case (default: %(default)s)")
    parser.add_argument("--allocators", default="default,keep", help="allocator settings on the CPU (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: the CPU, and a GPU when there is one")
    parser.add_argument("--out", default=str(ROOT / "docs" / "benchmarks.md"), help="Markdown file to update (default: docs/benchmarks.md)")
    args = parser.parse_args(argv)
    if args.repeats < 1 or args.rows < 1:
        raise SystemExit("--repeats and --rows must be at least 1")
    args.models = list(SETUPS) if args.full else comma_list(args.models, tuple(SETUPS), "--models")
    args.cases = comma_list(args.cases, CASE_GROUPS, "--cases")
    args.allocators = comma_list(args.allocators, tuple(ALLOCATORS), "--allocators")
    return args


def run_device(device: str, machine: str, args: argparse.Namespace, command: str) -> None:
    """Measures everything asked for on one device; its section is written anew after every result."""
    cases = [case for case in args.cases if case not in ("data", *METHODS)]
    cases = [part for case in cases for part in ((case, "predict") if case == "evaluate" else (case,))]
    allocators = args.allocators if device == "cpu" else ["default"]
    with_data = "data" in args.cases and device == "cpu"
    methods = [name for name in METHODS if name in args.cases and device == "cpu"]
    names = ", ".join([*(args.models if cases else []), *(["data"] if with_data else [])])
    title = f"{names} on {'the CPU' if device == 'cpu' else 'a GPU'}"
    results, data = [], {}

    def write() -> None:
        write_section(Path(args.out), f"benchmark {device} {names}", section(title, machine, command, results, data))

    for model in args.models if cases else ():
        for case in cases:
            for allocator in allocators:
                results.append(measure(model, case, device, allocator, args.repeats, check=allocator == allocators[0]))
                print(describe(results[-1]), flush=True)
                write()
    if with_data:
        data.update(child("tools.benchmark_data", {"rows": args.rows, "repeats": args.repeats}, {"HF_HUB_OFFLINE": "1"}))
        print("\n".join(benchmark_data.tables(data)), flush=True)
        write()
    for name in methods:
        rows = child(f"tools.benchmark_{name}", {"repeats": args.repeats}, {})
        print("\n".join(benchmark_simseg.table(rows)), flush=True)
        write_section(Path(args.out), f"benchmark {device} {name}", section(f"{METHODS[name]} on the CPU", machine, command, [], {}, rows))
    if names or methods:
        print(f"written: {args.out}")


def main(argv=None) -> int:
    import torch

    args = parse(argv)
    command = shlex.join(["python", "tools/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; use --device cpu")
    if args.device in ("auto", "cpu"):
        run_device("cpu", processor(), args, command)
    if args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available()):
        run_device("cuda", f"{torch.cuda.get_device_name()}, {processor()}", args, command)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
