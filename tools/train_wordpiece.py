"""A WordPiece vocabulary from the captions of a data set: `tools/train_wordpiece.py DATA --out vocab.txt [--size 8000] [--split train]`.

For text towers that are trained from scratch; published checkpoints need the vocab.txt of bert-base-uncased. DATA is anything
that `fairseq-train --task image_text_pretraining` reads. The same captions give the same file.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ofaseg.data.codec import CodecError  # noqa: E402
from ofaseg.data.image_text_source import USUAL_COLUMNS, ImageTextColumns  # noqa: E402
from ofaseg.data.image_text_sources import open_image_text  # noqa: E402
from ofaseg.data.rows import ShardError  # noqa: E402
from ofaseg.utils.arguments import add_image_text_columns  # noqa: E402
from ofaseg.wordpiece import train_wordpiece  # noqa: E402


def captions(data: str, split: str, columns: ImageTextColumns = USUAL_COLUMNS):
    """Every caption of a split; rows that cannot be read are told on stderr and left out."""
    source = open_image_text(data, split, columns)
    for i in tqdm(range(len(source)), unit="row", disable=None):
        try:
            yield from source[i]["captions"]
        except (ShardError, CodecError) as error:
            tqdm.write(f"left out: {error}", file=sys.stderr)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="train_wordpiece", description="Make a WordPiece vocabulary from captions.")
    parser.add_argument("data", help="photos with captions")
    parser.add_argument("--out", required=True, help="file to write, one piece per line")
    parser.add_argument("--size", type=int, default=8000, help="most pieces (default: %(default)s)")
    parser.add_argument("--split", default="train", help="which split (default: %(default)s)")
    add_image_text_columns(parser)
    args = parser.parse_args(argv)
    try:
        size = train_wordpiece(captions(args.data, args.split, ImageTextColumns.from_options(args)), args.size, args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {size} pieces")
    return 0


if __name__ == "__main__":
    sys.exit(main())
