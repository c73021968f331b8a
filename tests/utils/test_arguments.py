"""Whole numbers from a least one on."""

import argparse

import pytest

from ofaseg.utils.arguments import at_least


def test_at_least():
    assert [at_least(0)("0"), at_least(1)("1"), at_least(1)("512")] == [0, 1, 512]
    for least, text in ((1, "0"), (0, "-3"), (1, "1.5"), (1, "many"), (0, "")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"is not a whole number of at least {least}"):
            at_least(least)(text)
