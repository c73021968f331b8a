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
