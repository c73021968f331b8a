"""Types of command-line arguments."""

import argparse
from typing import Callable


def at_least(least: int) -> Callable[[str], int]:
    """For argparse: whole numbers from `least` on."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return number


def add_image_text_columns(parser: argparse.ArgumentParser) -> None:
    """The options that `ofaseg.data.image_text_source.ImageTextColumns` is made of."""
    parser.add_argument("--image-column", default="", help="column of the photos in lists and tables (default: found by name and type)")
    parser.add_argument("--caption-columns", default="", help="that of the captions; several by commas (default: found by name and type)")
    parser.add_argument("--image-id-column", default="", help="that of numbers or texts that are equal for one photo (default: image_id)")
