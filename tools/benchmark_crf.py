"""Speed of the dense CRF at SimSeg's size, ours against pydensecrf where that is installed, on this machine.

    python tools/benchmark_crf.py [--image PHOTO] [--size 288] [--repeats N] [--threads 1,2] [--device cpu]

Prints a Markdown table: medians (and the quickest) of calls that take turns in one process, per call for one mask and for five
masks of one image, whose lattice is built once; "in tensor operations" is what a GPU, or a machine without numba, does.
Without a photo the image is drawn: two shaded areas with noise.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from statistics import median

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402

from ofaseg.evaluation.dense_crf import PairwiseKernels, binary_crf, pydensecrf_binary  # noqa: E402
from ofaseg.evaluation.pamr import pamr  # noqa: E402
from ofaseg.evaluation.permutohedral import Lattice  # noqa: E402
from tools.benchmark_measure import seconds  # noqa: E402

MASKS = 5
"""Candidate masks of one image at most (SimSeg)."""


def bench_image(size: int, photo: str | None = None) -> np.ndarray:
    """(size, size, 3) uint8: the photo squeezed to a square, or a drawn image."""
    if photo:
        return np.array(Image.open(photo).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    generator = np.random.default_rng(0)
    ys, xs = np.mgrid[:size, :size] / size
    colours = np.where((xs + 0.4 * np.sin(6 * ys) > 0.6)[..., None], [190, 90, 60], [60, 120, 150])
    shading = 50 * np.sin(9 * xs + 4 * ys)[..., None]
    return np.clip(colours + shading + generator.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8)


def bench_maps(size: int) -> torch.Tensor:
    """(MASKS, size, size) maps in 0..1 in blocks of 16 pixels, as patch scores give them."""
    coarse = F.interpolate(torch.rand(MASKS, 1, 4, 4, generator=torch.Generator().manual_seed(0)), size=-(-size // 16), mode="bicubic")
    maps = coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, 0, :size, :size]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def measure(image: np.ndarray, maps: torch.Tensor, repeats: int) -> dict[str, list[float]]:
    """Name -> seconds of every repeat; the runs take turns, so that a busy machine slows all of them."""
    pixels = torch.from_numpy(image).to(maps.device)
    channels = pixels.permute(2, 0, 1)[None].float()
    runs = {
        "dense_crf, 1 mask": lambda: binary_crf(pixels, maps[:1]),
        f"dense_crf, {MASKS} masks": lambda: binary_crf(pixels, maps),
        "dense_crf, kernels of an image alone": lambda: PairwiseKernels(pixels),
        "in tensor operations, 1 mask": lambda: binary_crf(pixels, maps[:1], kernels=PairwiseKernels(pixels, lattice=Lattice)),
        f"pamr, {MASKS} masks": lambda: pamr(channels, maps[None]),
    }
    if importlib.util.find_spec("pydensecrf"):
        runs["pydensecrf, 1 mask"] = lambda: pydensecrf_binary(image, maps[:1])
        runs[f"pydensecrf, {MASKS} masks"] = lambda: pydensecrf_binary(image, maps)
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, maps.device))
    return times


def table(threads: int, times: dict[str, list[float]]) -> str:
    """Rows of a Markdown table: medians, the quickest run, and how many times ours is quicker than the compiled package."""
    rows = []
    for name, values in times.items():
        other = times.get(name.replace("dense_crf", "pydensecrf")) if name.startswith("dense_crf") else None
        factor = f"{median(other) / median(values):.1f} ({min(other) / min(values):.1f})" if other else ""
        rows.append(f"| {name} | {threads} | {1000 * median(values):.1f} | {1000 * min(values):.1f} | {factor} |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="a photo; a drawn image without it")
    parser.add_argument("--size", type=int, default=288, help="side of the square image in pixels")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    image, maps = bench_image(options.size, options.image), bench_maps(options.size).to(options.device)
    before = torch.get_num_threads()
    print("| run | threads | median ms | least ms | times quicker than pydensecrf (by the least) |\n|---|---|---|---|---|")
    try:
        for threads in (int(part) for part in options.threads.split(",")):
            torch.set_num_threads(threads)
            print(table(threads, measure(image, maps, options.repeats)), flush=True)
    finally:
        torch.set_num_threads(before)
    if importlib.util.find_spec("pydensecrf"):
        same = (pydensecrf_binary(image, maps) == binary_crf(image, maps)).float().mean()
        print(f"\nPixels on which both agree: {100 * float(same):.3f} %")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
