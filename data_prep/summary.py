"""What was written of a split: `summary_<split>.json` beside the shards, and a few lines for people."""

import json
from pathlib import Path
from typing import Optional

import numpy as np

from data_prep.statistics import Statistics
from ofaseg.atomic import atomic_write
from ofaseg.vocabulary import ClassVocabulary

_COMMON_SIZES = 20
_PRINTED_CLASSES = 20
_PRINTED_SKIPPED = 5


def summary_path(out, split: str) -> Path:
    """Where the summary of a split lies in data folder `out`."""
    return Path(out) / f"summary_{split}.json"


def summarize(split: str, statistics: Statistics, vocabulary: Optional[ClassVocabulary], skipped: list[dict], files: list[int]) -> dict:
    """The summary of a split as a JSON-ready dict.

    Args:
        skipped: {"sample", "reason"} of each sample left out.
        files: bytes of each shard file.

    Returns:
        split, rows, files, bytes; unlabelled_rows (without a label map), unlabelled_pixels (without a class);
        classes: a dict of id, name, pixels, share (of all pixels with a class, 0..1) and images for each class;
        sizes: see `_sizes`; skipped.
    """
    labelled = max(1, int(statistics.pixels[:-1].sum()))
    names = vocabulary.names if vocabulary is not None else ()
    classes = [
        {"id": k, "name": name, "pixels": pixels, "share": round(pixels / labelled, 6), "images": images}
        for k, (name, pixels, images) in enumerate(zip(names, statistics.pixels.tolist(), statistics.images.tolist()))
    ]
    return {
        "split": split,
        "rows": statistics.rows,
        "files": len(files),
        "bytes": sum(files),
        "unlabelled_rows": statistics.unlabelled_rows,
        "unlabelled_pixels": int(statistics.pixels[-1]),
        "classes": classes,
        "sizes": _sizes(statistics),
        "skipped": skipped,
    }


def _sizes(statistics: Statistics) -> dict:
    """min, median and max of height and width in pixels, the number of distinct sizes, and the most common ones."""
    sizes = sorted(statistics.sizes.items(), key=lambda item: (-item[1], item[0]))
    counts = [count for _, count in sizes]
    result: dict = {}
    for axis, name in enumerate(("height", "width")):
        values = np.repeat([size[axis] for size, _ in sizes], counts)
        result[name] = {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
    common = [{"height": height, "width": width, "images": count} for (height, width), count in sizes[:_COMMON_SIZES]]
    return result | {"distinct": len(sizes), "most_common": common}


def write_summary(out, summary: dict) -> None:
    """Writes a summary atomically. Raises OSError when the disk fails."""
    with atomic_write(summary_path(out, summary["split"]), "w") as file:
        json.dump(summary, file, indent=1, ensure_ascii=False)


def read_summary(out, split: str) -> Optional[dict]:
    """The stored summary of a split; None without one, or when it is no JSON object."""
    try:
        summary = json.loads(summary_path(out, split).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def describe(summary: dict) -> str:
    """A few lines: rows and sizes, each class's share of the labelled pixels, classes that never occur, skipped samples."""
    split, sizes = summary["split"], summary["sizes"]
    files = f"{summary['files']} file" + ("s" if summary["files"] > 1 else "")
    lines = [f"{split}: {summary['rows']} rows in {files}, {summary['bytes'] / 1e6:.1f} MB; photos {_size_text(sizes)}"]
    if summary["unlabelled_rows"]:
        lines.append(f"{split}: {summary['unlabelled_rows']} rows have no label map")
    classes = sorted(summary["classes"], key=lambda entry: -entry["pixels"])
    present = [entry for entry in classes if entry["pixels"]]
    if present:
        shown = ", ".join(f"{entry['name']} {100 * entry['share']:.1f}" for entry in present[:_PRINTED_CLASSES])
        more = f" and {len(present) - _PRINTED_CLASSES} more" if len(present) > _PRINTED_CLASSES else ""
        total = max(1, summary["unlabelled_pixels"] + sum(entry["pixels"] for entry in present))
        without = f"; without label: {100 * summary['unlabelled_pixels'] / total:.1f} of all"
        lines.append(f"{split}: share of the labelled pixels in %: {shown}{more}{without}")
        absent = [entry["name"] for entry in summary["classes"] if not entry["pixels"]]
        if absent:
            lines.append(f"{split}: no pixel of {', '.join(absent)}")
    elif classes and summary["unlabelled_rows"] < summary["rows"]:
        lines.append(
            f"{split}: no pixel has a class; check the label values and --label-offset of the source, or that its annotations have outlines"
        )
    skipped = summary["skipped"]
    if skipped:
        lines.append(f"{split}: {len(skipped)} bad samples skipped, listed in {summary_path('', split)}")
        lines += [f"  {entry['reason']}" for entry in skipped[:_PRINTED_SKIPPED]]
    return "\n".join(lines)


def _size_text(sizes: dict) -> str:
    """Height x width when all are equal, else their ranges."""
    if sizes["distinct"] == 1:
        return f"{sizes['height']['min']}x{sizes['width']['min']} (height x width)"
    ranges = (f"{name} {sizes[name]['min']}..{sizes[name]['max']} (median {sizes[name]['median']:g})" for name in ("height", "width"))
    return ", ".join(ranges)
