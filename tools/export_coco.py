"""Writes the segments and objects of shards as COCO's files: `python tools/export_coco.py SHARDS --out FOLDER [--splits val]`.

`panoptic_<split>.json` with a folder of PNG files, and `instances_<split>.json` with run lengths, whichever the shards hold.
`data_prep/prepare.py coco_format` reads them back.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ofaseg.data.coco_export import ExportError, export_split  # noqa: E402
from ofaseg.data.codec import CodecError  # noqa: E402
from ofaseg.data.shards import ShardError, ShardReader, list_splits, load_vocabulary  # noqa: E402
from ofaseg.vocabulary import VocabularyError  # noqa: E402


def main(argv=None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="export_coco", description="Write segments and objects of shards in COCO's formats.")
    parser.add_argument("shards", help="folder that data_prep/prepare.py wrote")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--splits", help="comma list of splits (default: all)")
    parser.add_argument("--photo-suffix", help="of the photos' names in the lists (default: that of what each photo is, such as .jpg)")
    args = parser.parse_args(argv)
    try:
        vocabulary = load_vocabulary(args.shards)
        if vocabulary is None:
            raise VocabularyError(f"{args.shards}: no vocabulary.json with class names; give the folder that data_prep/prepare.py wrote")
        for split in args.splits.split(",") if args.splits else list_splits(args.shards):
            reader = ShardReader.for_split(args.shards, split.strip())
            for path in export_split(reader, vocabulary, args.out, split.strip(), args.photo_suffix):
                print(f"{path}: {len(reader)} photos")
    except (ShardError, VocabularyError, ExportError, CodecError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
