"""Prediction with thousands of class names against 150: time and memory of one photo, the class vectors being there.

    python tools/benchmark_names.py [--names 150,10000] [--size 512] [--architecture simseg_nano] [--repeats N] [--threads N] [--device cpu]

Prints a Markdown table: the median of the forward pass, of choosing the best class of every pixel, and of both; the highest memory
of a process of its own per number of names; and both as multiples of the first row. Weights and class vectors are random: what
is computed does not depend on them, but how many classes can win in a cell does, so the photo is a smooth drawing.
"""

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path
from statistics import median

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from ofaseg.evaluation.postprocess import argmax_at_size  # noqa: E402
from ofaseg.models.simseg import SimSeg, architecture_config  # noqa: E402
from tools.benchmark_measure import memory, reset_peak, seconds  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def model_with_names(architecture: str, size: int, names: int, device: torch.device) -> SimSeg:
    """A model of random weights for photos of `size`, with random vectors of `names` classes."""
    torch.manual_seed(0)
    model = SimSeg(architecture_config(architecture, image_size=size), vocab_size=8).eval().to(device)
    model.keep_class_embeddings(F.normalize(torch.randn(names, model.config.projection_dim), dim=-1))
    return model


def drawn_photo(size: int, device: torch.device) -> torch.Tensor:
    """(1, 3, size, size) uint8: coloured areas without edges."""
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, size=size, mode="bicubic") * 255).clamp(0, 255).to(torch.uint8).to(device)


def measure(names: int, size: int, architecture: str, repeats: int, device: torch.device) -> dict:
    """Seconds of every repeat ("forward", "classes") and the highest memory in MB ("peak": of the process, on a GPU of its tensors)."""
    model, photo = model_with_names(architecture, size, names, device), drawn_photo(size, device)
    found = {"names": names, "forward": [], "classes": []}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    for _ in range(repeats + 1):  # the first one fills caches

        def forward():
            found["output"] = model.predict(image=photo).class_logits[0]

        found["forward"].append(seconds(forward, device))
        found["classes"].append(seconds(lambda: argmax_at_size(found["output"], (size, size)), device))
        del found["output"]
    found["peak"] = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else memory("VmHWM")
    return found | {"forward": found["forward"][1:], "classes": found["classes"][1:]}


def in_own_process(names: int, args) -> dict:
    """`measure` in a fresh process, whose memory nothing else has touched."""
    request = {"names": names, "size": args.size, "architecture": args.architecture, "repeats": args.repeats}
    request |= {"threads": args.threads, "device": args.device}
    command = [sys.executable, "-m", "tools.benchmark_names", "--request", json.dumps(request)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def table(results: list[dict]) -> str:
    """Markdown: one row per number of names; time and memory also as multiples of the first row's."""
    lines = ["| names | forward, ms | best classes, ms | both, ms | | memory, MB | |", "|---:|" + "---:|" * 6]
    totals = [median(result["forward"]) + median(result["classes"]) for result in results]
    for result, total in zip(results, totals):
        cells = [f"{result['names']:,}", *(f"{1000 * median(result[key]):.0f}" for key in ("forward", "classes")), f"{1000 * total:.0f}"]
        cells += [f"x {total / totals[0]:.2f}", f"{result['peak']:.0f}", f"x {result['peak'] / results[0]['peak']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default="150,10000", help="numbers of class names; the others are compared with the first")
    parser.add_argument("--size", type=int, default=512, help="side of the photo, and of the label map, in pixels")
    parser.add_argument("--architecture", default="simseg_nano", help="named architecture of SimSeg")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--request", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.request:
        logging.getLogger().setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG
        request = json.loads(args.request)
        torch.set_num_threads(request.pop("threads"))
        print(json.dumps(measure(**request | {"device": torch.device(request["device"])})))
        return 0
    print(table([in_own_process(int(names), args) for names in args.names.split(",")]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
