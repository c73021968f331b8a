"""Speed of panoptic quality, ours against a plain procedure, on this machine.

    python tools/benchmark_panoptic.py [--maps 5000] [--size 480x640] [--segments 20] [--processes 1,2] [--plain-maps 200]

The plain procedure is the usual one: unique pairs of ids over all pixels, then loops over the pairs and the segments. It works on files:
an evaluator writes every prediction as PNG, and reads it and the truth again. Ours reads the truth, which lies in a shard as PNG,
and takes the prediction as it is. Both are measured from maps in memory, too. Maps are drawn: wavy regions with ids spread over 24 bits,
void and a crowd, and a prediction that is moved and partly relabelled. A few are drawn and used in turn.
"""

import argparse
import io
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from ofaseg.data import codec  # noqa: E402
from ofaseg.evaluation.panoptic import panoptic_counts  # noqa: E402

NUM_CLASSES = 133
DISTINCT = 16
"""Pairs of maps that are drawn; the others repeat them."""
_DOWN = 2**24


def draw_pair(seed: int, height: int, width: int, segments: int) -> tuple:
    """(truth, its segments, prediction, its segments) of one photo, as `panoptic_counts` takes them."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    wave_y, wave_x = 0.02 * height * np.sin(xs / 17 + seed), 0.02 * width * np.sin(ys / 13)
    seeds = zip(rng.uniform(0, height, segments + 1), rng.uniform(0, width, segments + 1))
    region = np.stack([(ys + wave_y - y) ** 2 + (xs + wave_x - x) ** 2 for y, x in seeds]).argmin(0)
    ids = np.concatenate([[0], rng.choice(_DOWN - 1, segments, replace=False) + 1])  # region 0 is void
    classes = rng.integers(0, NUM_CLASSES, segments + 1)
    truth = ids[region].astype(np.int32)
    present = [k for k in range(1, segments + 1) if (region == k).any()]
    true_segments = [
        {"id": int(ids[k]), "class_id": int(classes[k]), "is_crowd": k == 1, "area": int((region == k).sum())} for k in present
    ]
    prediction = np.roll(region, rng.integers(0, 8, 2), (0, 1)).astype(np.int32)
    changed = np.where(rng.random(segments + 1) < 0.2, rng.integers(0, NUM_CLASSES, segments + 1), classes)
    return truth, true_segments, prediction, [{"id": int(k), "class_id": int(changed[k])} for k in np.unique(prediction) if k]


def plain_counts(truth, true_segments, prediction, segments, num_classes: int) -> np.ndarray:
    """(K, 4) counts as `panoptic_counts`, by unique pairs over all pixels and loops."""
    counts = np.zeros((num_classes, 4))
    true = {s["id"]: s for s in true_segments}
    pred = {s["id"]: s | {"area": 0} for s in segments}
    for number, area in zip(*np.unique(prediction, return_counts=True)):
        if number:
            pred[int(number)]["area"] = int(area)
    pairs, shared = np.unique(truth.astype(np.uint64) * _DOWN + prediction.astype(np.uint64), return_counts=True)
    shared_by = {(int(pair) // _DOWN, int(pair) % _DOWN): int(n) for pair, n in zip(pairs, shared)}
    matched_true, matched_pred = set(), set()
    for (t, p), n in shared_by.items():
        if t not in true or p not in pred or true[t]["is_crowd"] or true[t]["class_id"] != pred[p]["class_id"]:
            continue
        iou = n / (pred[p]["area"] + true[t]["area"] - n - shared_by.get((0, p), 0))
        if iou > 0.5:
            counts[pred[p]["class_id"]] += (iou, 1, 0, 0)
            matched_true.add(t)
            matched_pred.add(p)
    crowds = {}
    for t, about in true.items():
        if about["is_crowd"]:
            crowds[about["class_id"]] = t
        elif t not in matched_true:
            counts[about["class_id"], 3] += 1
    for p, about in pred.items():
        excused = shared_by.get((0, p), 0) + shared_by.get((crowds.get(about["class_id"], -1), p), 0)
        if p not in matched_pred and excused / about["area"] <= 0.5:
            counts[about["class_id"], 2] += 1
    return counts


def ours_of_evaluation(truth, true_segments, prediction, segments, num_classes: int) -> np.ndarray:
    """`panoptic_counts` of the truth as PNG and a predicted map."""
    return panoptic_counts(codec.decode_segment_map(truth), true_segments, prediction, segments, num_classes)


def plain_of_evaluation(truth, true_segments, prediction, segments, num_classes: int) -> np.ndarray:
    """`plain_counts` of the truth as PNG and a predicted map that goes through PNG as well; files stay in memory."""
    colours = np.stack([prediction % 256, prediction // 256 % 256, prediction // 65536], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, format="PNG")
    return plain_counts(_plain_read(io.BytesIO(truth)), true_segments, _plain_read(file), segments, num_classes)


def _plain_read(file) -> np.ndarray:
    colours = np.array(Image.open(file), dtype=np.uint32)
    return colours[:, :, 0] + 256 * colours[:, :, 1] + 256 * 256 * colours[:, :, 2]


COUNTERS = {
    "evaluation, by runs (ours)": ours_of_evaluation,
    "evaluation, prediction through a file, unique pixels and loops": plain_of_evaluation,
    "maps in memory, by runs (ours)": panoptic_counts,
    "maps in memory, unique pixels and loops": plain_counts,
}
OURS = (ours_of_evaluation, panoptic_counts)
FROM_FILE = (ours_of_evaluation, plain_of_evaluation)


def count_share(share: range, name: str, pairs: list) -> np.ndarray:
    """Summed counts of the maps `share`; what a process does. The truths of `pairs` are PNG for the counters of `FROM_FILE`."""
    total = np.zeros((NUM_CLASSES, 4))
    for i in share:
        total += COUNTERS[name](*pairs[i % len(pairs)], NUM_CLASSES)
    return total


def measure(name: str, pairs: list, maps: int, processes: int) -> tuple[float, np.ndarray]:
    """(seconds, summed counts) of `maps` maps; starting the processes and handing the drawn maps over is not counted."""
    if COUNTERS[name] in FROM_FILE:
        pairs = [(codec.encode_segment_map(truth), *others) for truth, *others in pairs]
    work = partial(count_share, name=name, pairs=pairs)
    if processes == 1:
        work(range(1))
        start = time.perf_counter()
        total = work(range(maps))
        return time.perf_counter() - start, total
    shares = [range(k, maps, processes) for k in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        list(pool.map(work, [range(1)] * processes))
        start = time.perf_counter()
        parts = list(pool.map(work, shares))
        return time.perf_counter() - start, sum(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=5000)
    parser.add_argument("--size", default="480x640", help="height x width in pixels")
    parser.add_argument("--segments", type=int, default=20, help="segments of a photo")
    parser.add_argument("--processes", default="1,2", help="numbers of processes, separated by commas")
    parser.add_argument("--plain-maps", type=int, default=1000, help="maps that the plain procedure counts")
    options = parser.parse_args(arguments)
    height, width = (int(part) for part in options.size.split("x"))
    pairs = [draw_pair(seed, height, width, options.segments) for seed in range(min(DISTINCT, options.maps))]
    same = max(np.abs(panoptic_counts(*pair, NUM_CLASSES) - plain_counts(*pair, NUM_CLASSES)).max() for pair in pairs)
    print("| counting | processes | maps | seconds | ms per map | maps per second |\n|---|---|---|---|---|---|")
    for processes in (int(part) for part in options.processes.split(",")):
        for name in COUNTERS:
            maps = options.maps if COUNTERS[name] in OURS else min(options.maps, options.plain_maps)
            seconds, _ = measure(name, pairs, maps, processes)
            rates = f"{1000 * seconds / maps:.3f} | {maps / seconds:.0f}"
            print(f"| {name} | {processes} | {maps} | {seconds:.2f} | {rates} |", flush=True)
    print(f"\nLargest difference between the two counts: {same:.1e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
