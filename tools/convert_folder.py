"""One run's shards from a user's folder: `tools/convert_folder.py --root FOLDER --out SHARDS --run RUN [--need SPLIT ...] [FLAG ...]`.

Checks the folder, converts it as `data_prep/prepare.py folder` does (it gets the other FLAGs), and remembers in `converted_from.json`,
beside the shards and in the run's folder, what they were made of: the folder, the flags, and names, sizes and times of its files.
Called again, it leaves finished shards of the same folder alone and writes others anew; where the run has checkpoints of other
data it stops, for training would go on with those.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Iterator, Optional, Sequence

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import prepare  # noqa: E402
from data_prep.source import SourceError  # noqa: E402
from ofaseg.atomic import atomic_write  # noqa: E402
from ofaseg.cli import main as ofaseg_command  # noqa: E402
from ofaseg.data.folder import list_splits, read_description, split_names, splits_being_written  # noqa: E402
from ofaseg.data.rows import ShardError  # noqa: E402
from ofaseg.data.tsv import index_path  # noqa: E402
from ofaseg.vocabulary import VocabularyError  # noqa: E402

RECORD = "converted_from.json"
_READ_FILES = ("classes.txt", "metadata.json")
_READ_FOLDERS = ("rows", "segments")


DOCTOR_FLAGS = ("--label-offset", "--ignore", "--image-ending", "--label-ending")
"""Flags of `prepare.py folder` that `ofaseg doctor` has as well."""


class ConvertError(ValueError):
    """A folder that cannot be used for this run; the message says what to do."""


def raw_files(args: argparse.Namespace) -> Iterator[Path]:
    """The files that a conversion with these arguments of `prepare` reads, sorted within each folder."""
    root = Path(args.root)
    for name in (args.class_names, args.palette, *(root / name for name in _READ_FILES)):
        if name and Path(name).is_file():
            yield Path(name)
    for name in (args.images, args.label_maps, *_READ_FOLDERS):
        for folder, subfolders, files in os.walk(root / name):
            subfolders.sort()
            yield from (Path(folder, file) for file in sorted(files))


def describe(args: argparse.Namespace, flags: Sequence[str]) -> dict:
    """What a conversion is made of; equal descriptions give equal shards.

    Args:
        args: of `prepare`.
        flags: as the user gave them.
    """
    listing = hashlib.sha256()
    for path in raw_files(args):
        status = path.stat()
        listing.update(f"{path}\0{status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return {"folder": os.path.realpath(args.root), "flags": list(flags), "files": listing.hexdigest()}


def read_record(folder) -> Optional[dict]:
    """What the shards or the run in `folder` were made of, None when that is not known. Raises ConvertError for a damaged record."""
    path = Path(folder) / RECORD
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConvertError(f"{path}: damaged ({error}); remove {folder} to start again, or set OUT to a new folder") from error


def write_record(folder, description: dict) -> None:
    with atomic_write(Path(folder) / RECORD, "w") as file:
        json.dump(description, file, indent=1)


def difference(there: Optional[dict], here: dict) -> str:
    """What sets the data of a record apart from those of now, for people."""
    if there is None:
        return f"data of unknown origin (no {RECORD})"
    if there.get("folder") != here["folder"]:
        return f"folder {there.get('folder')}"
    if there.get("flags") != here["flags"]:
        return f"the same folder, converted with other flags ({' '.join(map(str, there.get('flags') or ())) or 'none'})"
    return "the same folder before its files changed"


def check_run(run: Path, here: dict) -> None:
    """Raises ConvertError when the run's checkpoints learned from other data than those described."""
    there = read_record(run)
    if there != here and any(run.glob("checkpoint*.pt")):
        problem = f"the checkpoints there were trained on {difference(there, here)}"
        raise ConvertError(f"{run}: {problem}; set OUT to a new folder, or remove this one to start again")


def splits_to_write(args: argparse.Namespace, needed: Sequence[str]) -> list[str]:
    """The splits that a conversion writes. Raises ConvertError when one that the run needs is not among them."""
    try:
        known = prepare.load_dataset_module("folder").list_splits(args.root, args)
    except (OSError, SourceError, ShardError) as error:
        raise ConvertError(str(error)) from error
    splits = [split.strip() for split in args.splits.split(",")] if args.splits else list(known)
    for split in needed:
        if not set(split_names(split)) & set(splits):
            cure = f"add {args.images}/{split} and {args.label_maps}/{split} with some of the photos and label maps"
            either = "or put all photos straight into the two folders and give no --val-fraction 0: one in five is then held out"
            raise ConvertError(f"{args.root}: its splits are {', '.join(splits)}, this run also needs {split}; {cure}, {either}")
    return splits


def is_whole(out: Path, splits: Sequence[str]) -> bool:
    """Whether every split is in folder `out` and none was being written when a process ended."""
    description = read_description(out)
    return description is not None and set(splits) <= set(list_splits(out)) and not splits_being_written(out, description)


def remove_shards(out: Path) -> None:
    """Removes the shards of a folder, its vocabulary.json first: what a kill leaves counts as unfinished."""
    (out / "vocabulary.json").unlink(missing_ok=True)
    for paths in list_splits(out).values():
        for path in paths:
            Path(path).unlink()
            index_path(path).unlink(missing_ok=True)


def doctor_flags(flags: Sequence[str]) -> Optional[list[str]]:
    """The flags of a conversion for the doctor, which reads a folder the same way; None when one of them is not for it."""
    words = iter(flags)
    for word in words:
        option, _, value = word.partition("=")
        if option not in DOCTOR_FLAGS or not (value or next(words, "")):
            return None
    return list(flags)


def convert(args: argparse.Namespace, here: dict, command: Sequence[str], needed: Sequence[str]) -> int:
    """Makes the shards in `args.out` those of `here`; returns the exit status.

    Args:
        args: of `prepare`, which parsed them from `command`.
        needed: splits without which the run cannot start.

    Raises:
        ConvertError: they are there, but nothing tells where they are from; a split that is needed is missing.
    """
    out, there = Path(args.out), read_record(args.out)
    if there is None and out.is_dir() and list_splits(out):
        raise ConvertError(f"{out}: holds shards of {difference(there, here)}; set OUT or DATA to a new folder, or remove this one")
    splits = splits_to_write(args, needed)
    if there == here and is_whole(out, splits):
        print(f"{out}: shards of this folder are there already")
        return 0
    known = doctor_flags(here["flags"])
    if known is not None and ofaseg_command(["doctor", args.root, *known]):  # it knows the usual layout; prepare checks every other one
        return 1
    if there is not None and there != here:
        print(f"{out}: shards of {difference(there, here)} are replaced")
        remove_shards(out)
    write_record(out, here)
    return prepare.main(list(command))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="convert_folder",
        description="One run's shards from a user's folder.",
        epilog="All other flags are those of data_prep/prepare.py folder.",
        allow_abbrev=False,
    )
    parser.add_argument("--root", required=True, help="folder with images/, labels/ and classes.txt, or as the flags say")
    parser.add_argument("--out", required=True, help="folder of the shards")
    parser.add_argument("--run", required=True, help="folder of the run, where its checkpoints lie")
    parser.add_argument("--need", action="append", default=[], metavar="SPLIT", help="stop when the folder does not give this split")
    own, flags = parser.parse_known_args(argv)
    command = ["folder", "--root", own.root, "--out", own.out, "--format", "parquet", *flags]
    args = prepare.parse_arguments(command)
    try:
        here = describe(args, flags)
        check_run(Path(own.run), here)
        status = convert(args, here, command, own.need)
        if status == 0:
            write_record(own.run, here)
        return status
    except (ConvertError, ShardError, VocabularyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
