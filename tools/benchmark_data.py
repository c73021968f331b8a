"""How fast rows become tensors, ours beside other ways; run as `python -m tools.benchmark_data '{"rows": 48, "repeats": 3}'`.

The answer is one JSON line: rates of every way (one process, one thread, rows in random order), milliseconds per stage of
ours, rates with data workers, latency of a random row, and times of the offsets index of a TSV of a million rows.
"""

import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils.data import DataLoader

from ofaseg.data import codec, transforms
from ofaseg.data.tsv import TsvShard, build_offsets, index_path
from tools import benchmark_readers as readers

PUBLISHED, PLAIN = "published way: TSV of PNG, code table", "plain way: base64, Pillow, NumPy"
INDEX_ROWS = 1_000_000
_BATCH, _WARM_BATCHES = 8, 8


# ---- rows per second ----


def ways(root: Path, vocabulary, rows: int) -> dict[tuple[str, bool], object]:
    """(name, augmented) -> readers of the shards in `root`."""
    found = {(PUBLISHED, False): readers.PublishedRows(next((root / "png-tsv").glob("*.tsv")), len(vocabulary))}
    for augment in (False, True):
        found[PLAIN, augment] = readers.PlainRows(next((root / "jpeg-tsv").glob("*.tsv")), augment)
        if importlib.util.find_spec("webdataset"):
            found["WebDataset (in file order), then plain", augment] = readers.WebDatasetRows(root / "jpeg.tar", rows, augment)
        if importlib.util.find_spec("datasets"):
            found["HF datasets, then plain", augment] = readers.HuggingFaceRows(root / "jpeg-parquet", root / "cache", augment)
        if not augment:
            found["ours: TSV of PNG", augment] = readers.our_rows(root / "png-tsv", vocabulary, augment)
        found["ours: TSV", augment] = readers.our_rows(root / "jpeg-tsv", vocabulary, augment)
        found["ours: Parquet", augment] = readers.our_rows(root / "jpeg-parquet", vocabulary, augment)
    found["ours: image-free samples (no row is read)", False] = readers.image_free_samples(rows, len(vocabulary))
    return found


def read_all(source, order) -> None:
    """Reads every row once, in `order` where the source has random access."""
    if hasattr(source, "__getitem__"):
        for i in order:
            source[i]
    else:
        for _ in source:
            pass


def rates(sources: dict, rounds: int) -> dict[str, dict[str, float]]:
    """name -> {"plain": rows/s, "augmented": rows/s}, medians over `rounds` passes that take turns."""
    measured = {key: [] for key in sources}
    for turn in range(rounds + 1):  # the first one warms up
        for key, source in sources.items():
            order = np.random.default_rng(turn).permutation(len(source)).tolist()
            start = time.perf_counter()
            read_all(source, order)
            measured[key].append(len(source) / (time.perf_counter() - start))
    result: dict[str, dict[str, float]] = {}
    for (name, augmented), values in measured.items():
        result.setdefault(name, {})["augmented" if augmented else "plain"] = median(values[1:])
    return result


def check_rows(published, ours) -> None:
    """Raises AssertionError unless both ways make the same picture and labels of the first row (for the same crop)."""
    theirs, sample = published[0], ours.load(0)
    full = codec.decode_image(ours.reader[0]["image"])
    side = readers.SIDE
    wide = transforms.to_tensors(transforms.resize_short_side({"image": full}, side, 4 * side))["image"].float() / 127.5 - 1
    image, target = sample["image"].float() / 127.5 - 1, theirs["target"].view(side, side) - readers.SEG_OFFSET
    labels = torch.where(sample["label_map"] < 0, published.num_classes, sample["label_map"])
    ours_at, theirs_at = (_column_of(part, wide) for part in (image, theirs["image"]))
    first, last = max(ours_at, theirs_at), min(ours_at, theirs_at) + side
    same = torch.equal(labels[:, first - ours_at : last - ours_at], target[:, first - theirs_at : last - theirs_at])
    assert same, "the two ways read different label maps"


def _column_of(crop: torch.Tensor, image: torch.Tensor) -> int:
    """Where the crop (3, S, S) was cut out of the image (3, S, W). Raises AssertionError when it was not."""
    for column in range(image.shape[2] - crop.shape[2] + 1):
        if torch.allclose(crop, image[:, :, column : column + crop.shape[2]], atol=1e-5):
            return column
    raise AssertionError("the two ways decode different pictures")


# ---- where the time goes ----


def stages(dataset, rounds: int) -> dict[str, float]:
    """Milliseconds per row of each stage of augmented reading, medians over `rounds` passes over all rows."""
    reader, vocabulary = dataset.reader, dataset.vocabulary
    size = readers.SIDE
    steps = {
        "line of a random row": lambda s, rng: s | {"fields": reader.read(s["row"], ("id",))},
        "base64 of both files": lambda s, rng: s | {name: codec.b64decode(s[f"{name} text"]) for name in ("image", "label_map")},
        "JPEG": lambda s, rng: s | {"image": codec.decode_image(s["image"])},
        "PNG to class ids": lambda s, rng: s | {
            "label_map": codec.decode_label_map(s["label_map"], vocabulary, dtype=codec.narrow_dtype(vocabulary))
        },
        "scale and varied crop": lambda s, rng: transforms.random_scale_crop(s, rng, size, 4 * size),
        "flip": lambda s, rng: transforms.random_flip(s, rng),
        "colour": lambda s, rng: transforms.photometric_distortion(s, rng),
        "to tensors": lambda s, rng: transforms.to_tensors(s),
    }
    passes = {name: [] for name in steps}
    for turn in range(rounds + 1):
        seconds = dict.fromkeys(steps, 0.0)
        for i in np.random.default_rng(turn).permutation(len(reader)).tolist():
            row = reader.read(i, ("image", "label_map"))
            sample = {"row": i} | {f"{name} text": codec.b64encode(row[name]) for name in row}
            rng = np.random.default_rng((turn, i))
            for name, step in steps.items():
                start = time.perf_counter()
                sample = step(sample, rng)
                seconds[name] += time.perf_counter() - start
        for name, value in seconds.items():
            passes[name].append(1000 * value / len(reader))
    return {name: median(values[1:]) for name, values in passes.items()}


def row_latency(reader, count: int = 2000) -> float:
    """Median microseconds from a row number to its checked line, read from the page cache; nothing large is decoded."""
    times = []
    for i in np.random.default_rng(0).integers(0, len(reader), count).tolist():
        start = time.perf_counter()
        reader.read(i, ("id",))
        times.append(time.perf_counter() - start)
    return 1e6 * median(times)


# ---- workers ----


def worker_rates(dataset, batches: int) -> dict[str, float]:
    """Rows per second of augmented batches, in this process and from one and two data workers, after the first batches."""
    generator = np.random.default_rng(0)
    order = generator.integers(0, len(dataset), (_WARM_BATCHES + batches) * _BATCH).reshape(-1, _BATCH).tolist()
    result = {}
    for workers in (0, 1, 2):
        loader = DataLoader(dataset, batch_sampler=order, num_workers=workers, collate_fn=dataset.collater)
        for number, _ in enumerate(loader, 1):
            if number == _WARM_BATCHES:
                start = time.perf_counter()
        result[str(workers)] = batches * _BATCH / (time.perf_counter() - start)
    return result


# ---- index ----


def index_times(folder: Path, rows: int) -> dict[str, float]:
    """Seconds to sweep, index and open a TSV of `rows` short lines that lies in the page cache, and its size in bytes."""
    path = folder / "many.tsv"
    fields = b"\t".join([b"A" * 200, b"B" * 40])
    with path.open("wb") as file:
        for start in range(0, rows, 10_000):
            file.write(b"".join(b"%s\t%09d\n" % (fields, k) for k in range(start, min(start + 10_000, rows))))
    buffer = bytearray(1 << 24)
    result = {"rows": rows, "bytes": path.stat().st_size}
    with path.open("rb", buffering=0) as file:
        start = time.perf_counter()
        while file.readinto(buffer):
            pass
        result["read"] = time.perf_counter() - start
    for name, action in (
        ("sweep", lambda: build_offsets(path)),
        ("build", lambda: TsvShard(path, {"image": 0, "label_map": 1, "id": 2}, 3)),
        ("open", lambda: TsvShard(path, {"image": 0, "label_map": 1, "id": 2}, 3)),
    ):
        start = time.perf_counter()
        action()
        result[name] = time.perf_counter() - start
    assert index_path(path).exists()
    os.unlink(path)
    return result


# ---- all of it ----


def measure(rows: int, repeats: int, index_rows: int = INDEX_ROWS, batches: int = 96) -> dict:
    """Everything that `tables` shows, medians of `repeats`; for a process of its own, since it forks data workers.

    Args:
        rows: photos.
        index_rows: lines of the TSV that is indexed.
        batches: batches that are timed with data workers.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ofaseg-benchmark-") as folder:
        root = Path(folder)
        pictures, vocabulary, kind = readers.photos(rows)
        readers.write_shards(root, pictures, vocabulary)
        sources = ways(root, vocabulary, rows)
        check_rows(sources[PUBLISHED, False], sources["ours: TSV of PNG", False])
        ours = sources["ours: TSV", True]
        return {
            "photos": kind,
            "rates": rates(sources, repeats),
            "stages": stages(ours, repeats),
            "workers": {name: worker_rates(sources[name, True], batches) for name in ("ours: TSV", "ours: Parquet")},
            "latency": {name: row_latency(sources[name, True].reader) for name in ("ours: TSV", "ours: Parquet")},
            "index": index_times(root, index_rows),
        }


def tables(result: dict) -> list[str]:
    """Markdown lines of `measure`'s answer."""
    base = result["rates"][PLAIN]
    lines = ["", f"Rows of 640x480 to 512 px tensors, one process, one thread; {result['photos']}:", ""]
    lines += ["| way | rows/s | times plain | augmented: rows/s | times plain |", "|---|---|---|---|---|"]
    for name, rate in result["rates"].items():
        cells = [f"{rate[kind]:,.0f} | {rate[kind] / base[kind]:.1f}" if kind in rate else " | " for kind in ("plain", "augmented")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    total = sum(result["stages"].values())
    lines += ["", "| stage of our augmented TSV row | ms | share |", "|---|---|---|"]
    lines += [f"| {name} | {value:.3f} | {100 * value / total:.0f} % |" for name, value in result["stages"].items()]
    lines += [f"| together | {total:.3f} | |", ""]
    for name, rate in result["workers"].items():
        shown = ", ".join(f"{workers} workers {rate[workers]:,.0f}" for workers in ("0", "1", "2"))
        lines.append(f"- data loader, {name}: {shown} augmented rows/s; two workers are {rate['2'] / rate['1']:.2f} times one")
    shown = ", ".join(f"{name} {value:.0f}" for name, value in result["latency"].items())
    lines.append(f"- a random row, without decoding, microseconds: {shown}")
    index = result["index"]
    megabytes = index["bytes"] / 1e6
    lines.append(
        f"- a TSV of {index['rows']:,} rows ({megabytes:,.0f} MB, in the page cache): reading alone {megabytes / index['read']:,.0f} MB/s, "
        f"sweep for line starts {megabytes / index['sweep']:,.0f} MB/s; first opening, which stores the index, {index['build']:.2f} s; "
        f"opening with the index {index['open']:.3f} s"
    )
    return lines


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG, and Pillow logs every chunk
    request = json.loads(sys.argv[1])
    print(json.dumps(measure(**request)))
