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
import os
import sys
from pathlib import Path
from typing import Optional

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep.engine import usable_cores  # noqa: E402
from data_prep.source import Source, SourceError  # noqa: E402
from data_prep.summary import describe  # noqa: E402
from data_prep.write_split import ENGINES, WriteOptions, write_split  # noqa: E402
from ofaseg.data.croissant import write_croissant  # noqa: E402
from ofaseg.data.rows import ShardError  # noqa: E402
from ofaseg.data.verify import verify_folder  # noqa: E402
from ofaseg.utils.arguments import at_least
from ofaseg.vocabulary import VocabularyError  # noqa: E402

DATASETS = {
    "ade20k": "data_prep.ade20k",
    "ade20k_panoptic": "data_prep.ade20k_panoptic",
    "camvid": "data_prep.camvid",
    "cityscapes": "data_prep.cityscapes",
    "coco20i": "data_prep.coco20i",
    "coco_captions": "data_prep.coco_captions",
    "coco_format": "data_prep.coco_format",
    "coco_instances": "data_prep.coco_instances",
    "coco_object": "data_prep.coco_object",
    "coco_panoptic": "data_prep.coco_panoptic",
    "coco_stuff": "data_prep.coco_stuff",
    "coco_unseen": "data_prep.coco_unseen",
    "coco_zero_shot": "data_prep.coco_zero_shot",
    "flickr30k": "data_prep.flickr30k",
    "folder": "data_prep.folder",
    "fss1000": "data_prep.fss1000",
    "hf": "data_prep.hf",
    "mosaic4": "data_prep.mosaic4",
    "pascal5i": "data_prep.pascal5i",
    "pascal_context": "data_prep.pascal_context",
    "pascal_voc": "data_prep.pascal_voc",
    "regions": "data_prep.regions",
    "shapes": "data_prep.shapes",
    "shards": "data_prep.shards",
    "voc_zero_shot": "data_prep.voc_zero_shot",
}
"""Dataset name -> module. A new dataset is a new module and a line here."""


class PrepareError(ValueError):
    """Arguments or source files from which no shards can be made; the message says what to do."""


def load_dataset_module(name: str):
    """The data_prep module of a dataset. Raises PrepareError listing the known names."""
    if name not in DATASETS:
        raise PrepareError(f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}")
    return importlib.import_module(DATASETS[name])


def _parser() -> argparse.ArgumentParser:
    """The options of every dataset."""
    parser = argparse.ArgumentParser(prog="prepare", description="Turn a dataset into shards (TSV or Parquet) with their vocabulary.json.")
    parser.add_argument("dataset", nargs="?", help=f"one of: {', '.join(DATASETS)}; DATASET --help lists its own options")
    parser.add_argument("--root", help="folder of the raw dataset; see the docstring of data_prep/<dataset>.py for its layout")
    parser.add_argument("--out", help="folder to write; splits already there stay, those named by --splits are replaced")
    parser.add_argument("--format", default="parquet", choices=("tsv", "parquet"))
    parser.add_argument("--splits", "--split", help="comma list of splits (default: all of the dataset)")
    parser.add_argument("--rows-per-shard", type=at_least(1), help="samples per file (default: 64 to 5000, by the size of the split)")
    parser.add_argument("--workers", type=at_least(1), default=usable_cores(), help="processes (default: the usable cores, %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was killed; complete splits are kept")
    bad_help = "skip: leave out samples that cannot be read, list them in the summary"
    parser.add_argument("--on-bad-sample", default="raise", choices=("raise", "skip"), help=bad_help)
    engine_help = "ray: share the shards on the Ray cluster of this machine or $RAY_ADDRESS; all machines must see --root and --out"
    parser.add_argument("--engine", default="local", choices=ENGINES, help=engine_help)
    parser.add_argument("--verify", nargs="+", metavar="FOLDER", help="write nothing; tell whether written folders are as they were")
    return parser


def parse_arguments(argv=None) -> argparse.Namespace:
    """The command line, with the options of the dataset that it names, also as the dict `dataset_options`.

    Raises:
        PrepareError: an unknown dataset.
    """
    parser = _parser()
    dataset = _named_dataset(argv)
    if dataset is not None:
        module = load_dataset_module(dataset)
        if hasattr(module, "add_arguments"):
            module.add_arguments(parser.add_argument_group(f"options of {dataset}"))
    common = vars(_parser().parse_args([]))
    args = parser.parse_args(argv)
    args.dataset_options = {name: value for name, value in vars(args).items() if name not in common}
    if args.verify:
        given = ["dataset"] if args.dataset is not None else []
        given += [f"--{name}" for name in ("root", "out", "splits") if getattr(args, name) is not None]
        if given:
            parser.error(f"--verify takes folders alone; leave out {', '.join(given)}")
        return args
    missing = [name for name, value in (("dataset", args.dataset), ("--out", args.out)) if value is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if args.root is not None and os.path.exists(args.root):
        args.root = os.path.abspath(args.root)  # one name from everywhere, for --resume and for workers started elsewhere
    return args


def _named_dataset(argv) -> Optional[str]:
    """The dataset of the command line, which stands first; its module adds options."""
    argv = sys.argv[1:] if argv is None else argv
    return argv[0] if argv and not argv[0].startswith("-") else None


def open_splits(module, args: argparse.Namespace) -> dict[str, Source]:
    """Split name -> its source, for the splits that the command line asks for. Raises PrepareError."""
    name = args.dataset
    needs_root = module.needs_root(args) if hasattr(module, "needs_root") else getattr(module, "NEEDS_ROOT", True)
    if args.root is None and needs_root:
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
        options = WriteOptions(
            format=args.format,
            rows_per_shard=args.rows_per_shard,
            skip_bad=args.on_bad_sample == "skip",
            workers=args.workers,
            engine=args.engine,
            resume=args.resume,
            dataset_options=args.dataset_options,
        )
        for split, source in open_splits(load_dataset_module(args.dataset), args).items():
            print(describe(write_split(source, args.out, split, options)))
            write_croissant(args.out)  # after each split, for a later one may fail and the checksums must hold
    except (PrepareError, SourceError, ShardError, VocabularyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on", file=sys.stderr)
        return 130
    print(f"shards and vocabulary.json are in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
