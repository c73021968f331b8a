"""Turns a dataset into shards: `python -m data_prep.prepare DATASET --root RAW --out FOLDER --format tsv|parquet`.

DATASET is a name of `DATASETS`, each a module of this package with

    open_split(root, split, args) -> Source (see `data_prep.source`)
    SPLITS, or list_splits(root, args) -> list of split names
    add_arguments(parser)     its own options (optional)
    NEEDS_ROOT = False        when there is no raw folder (optional)

`python -m data_prep.prepare DATASET --help` lists the options of a dataset.
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

from data_prep.source import Source, SourceError  # noqa: E402
from ofaseg.data import codec  # noqa: E402
from ofaseg.data.shards import ShardError, ShardWriter  # noqa: E402
from ofaseg.data.verify import verify_folder  # noqa: E402
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary, VocabularyError  # noqa: E402

logger = logging.getLogger(__name__)

DATASETS = {
    "camvid": "data_prep.camvid",
    "shapes": "data_prep.shapes",
}
"""Dataset name -> module. A new dataset is a new module and a line here."""


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


def write_split(source: Source, out, split: str, format: str, rows_per_shard: int = 5000) -> dict:
    """Writes one split of a dataset as shards.

    Returns:
        num_rows, and pixels: (K + 1,) int64 labelled pixels per class, last "no label".

    Raises:
        PrepareError: the source is incomplete or damaged (the message names the file), or the shards cannot be written.
    """
    vocabulary = source.vocabulary
    pixels = np.zeros(len(vocabulary) + 1, dtype=np.int64)
    i = 0
    try:
        with ShardWriter(out, split, vocabulary, source.columns, format, rows_per_shard) as writer:
            for i in tqdm(range(len(source)), desc=split, unit="row"):
                row, label_map = sample_to_row(source[i], vocabulary)
                writer.write(row)
                if label_map is not None:
                    pixels += np.bincount(np.where(label_map == IGNORE_INDEX, len(vocabulary), label_map).ravel(), minlength=len(pixels))
        return {"num_rows": writer.num_rows, "pixels": pixels}
    except codec.CodecError as error:
        raise PrepareError(f"{source.name(i)}: {error}") from error
    except (FileNotFoundError, SourceError, ShardError, VocabularyError) as error:
        raise PrepareError(str(error)) from error


def parse_arguments(argv=None) -> argparse.Namespace:
    """The command line, with the options of the dataset that it names. Raises PrepareError for an unknown dataset."""
    parser = argparse.ArgumentParser(prog="prepare", description="Turn a dataset into shards (TSV or Parquet) with their vocabulary.json.")
    parser.add_argument("dataset", nargs="?", help=f"one of: {', '.join(DATASETS)}; DATASET --help lists its own options")
    parser.add_argument("--root", help="folder of the raw dataset; see the docstring of data_prep/<dataset>.py for its layout")
    parser.add_argument("--out", help="folder to write; splits already there stay, those named by --splits are replaced")
    parser.add_argument("--format", default="parquet", choices=("tsv", "parquet"))
    parser.add_argument("--splits", "--split", help="comma list of splits (default: all of the dataset)")
    parser.add_argument("--rows-per-shard", type=int, default=5000)
    parser.add_argument("--verify", nargs="+", metavar="FOLDER", help="write nothing; tell whether written folders are as they were")
    dataset = _named_dataset(argv)
    if dataset is not None:
        module = load_dataset_module(dataset)
        if hasattr(module, "add_arguments"):
            module.add_arguments(parser.add_argument_group(f"options of {dataset}"))
    args = parser.parse_args(argv)
    if args.verify:
        given = ["dataset"] if args.dataset is not None else []
        given += [f"--{name}" for name in ("root", "out", "splits") if getattr(args, name) is not None]
        if given:
            parser.error(f"--verify takes folders alone; leave out {', '.join(given)}")
        return args
    missing = [name for name, value in (("dataset", args.dataset), ("--out", args.out)) if value is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return args


def _named_dataset(argv) -> Optional[str]:
    """The dataset of the command line, which stands first; its module adds options."""
    argv = sys.argv[1:] if argv is None else argv
    return argv[0] if argv and not argv[0].startswith("-") else None


def open_splits(module, args: argparse.Namespace) -> dict[str, Source]:
    """Split name -> its source, for the splits that the command line asks for. Raises PrepareError."""
    name = args.dataset
    if args.root is None and getattr(module, "NEEDS_ROOT", True):
        raise PrepareError(f"{name} needs --root, the folder of the raw dataset:\n{inspect.cleandoc(module.__doc__)}")
    try:
        known = module.list_splits(args.root, args) if hasattr(module, "list_splits") else module.SPLITS
        splits = [split.strip() for split in args.splits.split(",")] if args.splits else list(known)
        unknown = [split for split in splits if split not in known]
        if unknown:
            raise PrepareError(f"{name} has no split {unknown[0]!r}; choose from {', '.join(known)}")
        return {split: module.open_split(args.root, split, args) for split in splits}
    except (OSError, SourceError, ShardError, VocabularyError) as error:
        raise PrepareError(str(error)) from error


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
    try:
        args = parse_arguments(argv)
        if args.verify:
            return verify(args.verify)
        for split, source in open_splits(load_dataset_module(args.dataset), args).items():
            result = write_split(source, args.out, split, args.format, args.rows_per_shard)
            print(summarize(split, result, source.vocabulary))
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"shards and vocabulary.json are in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
