"""Turns a dataset into shards: `python -m data_prep.prepare DATASET --root RAW --out FOLDER --format tsv|parquet`.

DATASET is a name of `DATASETS`, each a module of this package with

    vocabulary() -> ClassVocabulary
    iter_samples(root, split, ...) -> iterator of samples
    SPLITS        its split names (optional; train, val, test)
    COLUMNS       the columns its samples fill (optional; image, label_map, id)
    count_samples(root, split, ...) -> int (optional; for the progress bar)

A sample is a dict with the columns of `ofaseg.data.rows`; image, label_map and segment_map may also be arrays: (H, W, 3)
uint8, (H, W) class ids 0..K-1 with `IGNORE_INDEX`, (H, W) segment ids. Options such as `num` and `seed` are passed on to
modules whose `iter_samples` has them.

`python -m data_prep.prepare --verify FOLDER...` compares the rows of written folders with the hashes in their vocabulary.json.
"""

import argparse
import importlib
import inspect
import logging
import sys
from pathlib import Path
from typing import Optional

import numpy as np
from tqdm import tqdm

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep.source import SourceError  # noqa: E402
from ofaseg.data import codec  # noqa: E402
from ofaseg.data.shards import ShardError, ShardWriter  # noqa: E402
from ofaseg.data.verify import verify_folder  # noqa: E402
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary, VocabularyError  # noqa: E402

logger = logging.getLogger(__name__)

DATASETS = {"camvid": "data_prep.camvid", "shapes": "data_prep.shapes"}
"""Dataset name -> module. A new dataset is a new module and a line here."""
NEEDS_NO_ROOT = ("shapes",)


class PrepareError(ValueError):
    """Arguments or source files from which no shards can be made; the message says what to do."""


def load_dataset_module(name: str):
    """The data_prep module of a dataset. Raises PrepareError listing the known names."""
    if name not in DATASETS:
        raise PrepareError(f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}")
    return importlib.import_module(DATASETS[name])


def sample_to_row(sample: dict, vocabulary: ClassVocabulary) -> tuple[dict, Optional[np.ndarray]]:
    """(row for a ShardWriter, its label map (H, W) or None). Bytes are kept, arrays are encoded, labels are checked.

    Raises:
        CodecError: an array of the wrong shape, or a label that is neither a class nor "no label".
    """
    row, label_map = dict(sample), sample.get("label_map")
    if isinstance(row.get("image"), np.ndarray):
        row["image"] = codec.encode_image(row["image"])
    if isinstance(row.get("segment_map"), np.ndarray):
        row["segment_map"] = codec.encode_segment_map(row["segment_map"])
    if isinstance(label_map, np.ndarray):
        row["label_map"] = codec.encode_label_map(label_map, vocabulary)
    elif label_map is not None:
        label_map = codec.decode_label_map(label_map, vocabulary)
    return row, label_map


def write_split(name: str, root, out, split: str, format: str, rows_per_shard: int = 5000, options: Optional[dict] = None) -> dict:
    """Writes one split of a dataset as shards.

    Args:
        options: further arguments of the module's `iter_samples`.

    Returns:
        num_rows, and pixels: (K + 1,) int64 labelled pixels per class, last "no label".

    Raises:
        PrepareError: the source is incomplete or damaged (the message names the file), or the shards cannot be written.
    """
    module, options = load_dataset_module(name), options or {}
    vocabulary = module.vocabulary()
    columns = getattr(module, "COLUMNS", ("image", "label_map", "id"))
    pixels = np.zeros(len(vocabulary) + 1, dtype=np.int64)
    sample: dict = {}
    try:
        total = options.get("num") or (module.count_samples(root, split, **options) if hasattr(module, "count_samples") else None)
        with ShardWriter(out, split, vocabulary, columns, format, rows_per_shard) as writer:
            for sample in tqdm(module.iter_samples(root, split, **options), total=total, desc=f"{name} {split}", unit="row"):
                row, label_map = sample_to_row(sample, vocabulary)
                writer.write(row)
                if label_map is not None:
                    pixels += np.bincount(np.where(label_map == IGNORE_INDEX, len(vocabulary), label_map).ravel(), minlength=len(pixels))
        return {"num_rows": writer.num_rows, "pixels": pixels}
    except codec.CodecError as error:
        raise PrepareError(f"{name} {split}, sample {sample.get('id')!r}: {error}") from error
    except (FileNotFoundError, SourceError, ShardError, VocabularyError) as error:
        raise PrepareError(str(error)) from error


def split_options(module, num: Optional[str], seed: Optional[int], split: str) -> dict:
    """Options of `iter_samples` from --num ("1000", or "train=800,val=100") and --seed. Raises PrepareError if it has none."""
    accepted = inspect.signature(module.iter_samples).parameters
    given = {"num": _number_of(num, split) if num else None, "seed": seed}
    options = {key: value for key, value in given.items() if value is not None}
    for key in options:
        if key not in accepted:
            raise PrepareError(f"--{key} does not apply to {module.__name__.split('.')[-1]}, whose samples come from files; leave it out")
    return options


def _number_of(num: str, split: str) -> Optional[int]:
    counts = dict(part.split("=", 1) if "=" in part else ("", part) for part in num.split(","))
    text = counts.get(split, counts.get(""))
    if text is None:
        return None
    if not text.strip().isdigit() or int(text) < 1:
        raise PrepareError(f"--num {num!r}: {text!r} is not a number of samples of at least 1; write 1000, or train=800,val=100")
    return int(text)


def parse_arguments(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="prepare", description="Turn a dataset into shards (TSV or Parquet) with their vocabulary.json.")
    parser.add_argument("dataset", nargs="?", help=f"one of: {', '.join(DATASETS)}")
    parser.add_argument("--root", help="folder of the raw dataset; see the docstring of data_prep/<dataset>.py for its layout")
    parser.add_argument("--out", help="folder to write; splits already there stay, those named by --splits are replaced")
    parser.add_argument("--format", default="parquet", choices=("tsv", "parquet"))
    parser.add_argument("--splits", "--split", help="comma list of splits (default: all of the dataset)")
    parser.add_argument("--rows-per-shard", type=int, default=5000)
    parser.add_argument("--num", help="number of samples, or per split: train=800,val=100 (drawn datasets only)")
    parser.add_argument("--seed", type=int, help="seed of drawn datasets")
    parser.add_argument("--verify", nargs="+", metavar="FOLDER", help="write nothing; tell whether written folders are as they were")
    args = parser.parse_args(argv)
    if args.verify:
        given = ["dataset"] if args.dataset is not None else []
        given += [f"--{name}" for name in ("root", "out", "splits", "num", "seed") if getattr(args, name) is not None]
        if given:
            parser.error(f"--verify takes folders alone; leave out {', '.join(given)}")
        return args
    missing = [name for name, value in (("dataset", args.dataset), ("--out", args.out)) if value is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return args


def summarize(split: str, result: dict, vocabulary: ClassVocabulary) -> str:
    """A few lines: rows, and each class's share of the pixels."""
    total = max(1, int(result["pixels"].sum()))
    names = (*vocabulary.names, "(no label)")
    shares = ", ".join(f"{name} {100 * count / total:.1f}" for name, count in zip(names, result["pixels"].tolist()))
    absent = [name for name, count in zip(vocabulary.names, result["pixels"].tolist()) if not count]
    lines = [f"{split}: {result['num_rows']} rows; share of pixels in %: {shares}"]
    if absent and result["pixels"].any():
        lines.append(f"{split}: no pixel of {', '.join(absent)}")
    return "\n".join(lines)


def verify(folders: list[str]) -> int:
    """Prints a line per split that is as it was written and an error per faulty file; returns the exit status."""
    status = 0
    for folder in folders:
        try:
            checks = verify_folder(folder)
        except (ShardError, VocabularyError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        for split, check in checks.items():
            for fault in check.faults:
                print(f"error: {fault}", file=sys.stderr)
                status = 1
            if not check.faults:
                print(f"{folder}: {split}: {check.rows} rows, as they were written")
    return status


def main(argv=None) -> int:
    """The command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_arguments(argv)
    if args.verify:
        return verify(args.verify)
    try:
        module = load_dataset_module(args.dataset)
        if args.root is None and args.dataset not in NEEDS_NO_ROOT:
            raise PrepareError(f"{args.dataset} needs --root, the folder of the raw dataset:\n{inspect.cleandoc(module.__doc__)}")
        known = getattr(module, "SPLITS", ("train", "val", "test"))
        splits = [split.strip() for split in args.splits.split(",")] if args.splits else list(known)
        unknown = [split for split in splits if split not in known]
        if unknown:
            raise PrepareError(f"{args.dataset} has no split {unknown[0]!r}; choose from {', '.join(known)}")
        for split in splits:
            options = split_options(module, args.num, args.seed, split)
            result = write_split(args.dataset, args.root, args.out, split, args.format, args.rows_per_shard, options)
            print(summarize(split, result, module.vocabulary()))
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"shards and vocabulary.json are in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
