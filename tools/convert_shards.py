"""Writes shards in another form: `python tools/convert_shards.py SHARDS --to folder|tsv|parquet --out FOLDER`.

`folder` is one of ordinary photos and label maps (see `ofaseg.data.exported_folder`), which `data_prep/prepare.py folder --root
FOLDER` turns back into the same shards; `tsv` and `parquet` are those formats, row for row and byte for byte.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import prepare  # noqa: E402
from ofaseg.data.exported_folder import write_folder  # noqa: E402
from ofaseg.data.shards import ShardError  # noqa: E402
from ofaseg.vocabulary import VocabularyError  # noqa: E402


def parse_arguments(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="convert_shards", description="Write shards as another format, losslessly.")
    parser.add_argument("shards", help="folder that data_prep/prepare.py wrote")
    parser.add_argument("--to", required=True, choices=("folder", "tsv", "parquet"))
    parser.add_argument("--out", required=True, help="folder to write; for --to folder it must be new or empty")
    parser.add_argument("--splits", help="comma list of splits (default: all)")
    passed_on = parser.add_argument_group("options of data_prep/prepare.py, for tsv and parquet")
    passed_on.add_argument("--rows-per-shard", help="samples per file")
    passed_on.add_argument("--workers", help="processes")
    passed_on.add_argument("--resume", action="store_true", help="go on with a run that was killed")
    args = parser.parse_args(argv)
    if args.to == "folder" and (given := prepare_options(args)):
        parser.error(f"--to folder has no {given[0]}; leave it out")
    return args


def prepare_options(args: argparse.Namespace) -> list[str]:
    """The given options that `data_prep/prepare.py` takes as they are."""
    options = ["--resume"] if args.resume else []
    for option, value in (("--rows-per-shard", args.rows_per_shard), ("--workers", args.workers)):
        options += [option, value] if value is not None else []
    return options


def main(argv=None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    if args.to != "folder":
        options = ["shards", "--root", args.shards, "--out", args.out, "--format", args.to, *prepare_options(args)]
        return prepare.main([*options, "--splits", args.splits] if args.splits else options)
    splits = [split.strip() for split in args.splits.split(",")] if args.splits else None
    try:
        counts = write_folder(args.shards, args.out, splits)
    except (ShardError, VocabularyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = ", ".join(f"{split} {count}" for split, count in counts.items())
    print(f"{args.out}: rows written: {rows}; data_prep/prepare.py folder --root {args.out} reads them back")
    return 0


if __name__ == "__main__":
    sys.exit(main())
