"""Caption augmentation: shares of the changes, and how pieces become words again."""

import pickle
import re

import numpy as np
import pytest

from ofaseg.data.caption_augmentation import CaptionAugmentation
from ofaseg.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer

ENTRIES = (*SPECIAL_TOKENS, "[unused7]", "dog", "plays", "un", "##be", "##liev", "##able", "grass", "zebra", "##zz")


class Splits:
    """Pieces are what blanks separate."""

    entries = list(ENTRIES)

    def pieces(self, text):
        return text.split()


class Draws:
    """A generator whose uniform numbers are given, and whose integers are all `entry`."""

    def __init__(self, numbers, entry=0):
        self.numbers, self.entry = numbers, entry

    def random(self, size):
        assert size == len(self.numbers)
        return np.array(self.numbers)

    def integers(self, high, size):
        return np.full(size, self.entry % high)


KEEP, MASK, EXCHANGE, DELETE = 0.9, 0.05, 0.11, 0.15
WORD = "dog un ##be ##liev ##able"


def augment(caption, numbers, entry=0, **kwargs):
    return CaptionAugmentation(Splits(), **kwargs)(caption, Draws(numbers, entry))


@pytest.mark.parametrize(
    "numbers, expected, official",
    [
        ([KEEP] * 5, "dog unbelievable", "dog unbeliev"),  # officially the third continuation is lost
        ([KEEP, KEEP, DELETE, KEEP, KEEP], "dog unlievable", "dog unlievable"),
        ([KEEP, DELETE, KEEP, KEEP, KEEP], "dog believable", "dogbeliev"),  # the rest of a word joins no other word
        ([DELETE, DELETE, KEEP, KEEP, DELETE], "believ", ""),
        ([MASK, KEEP, KEEP, MASK, KEEP], "[MASK] unbe [MASK] able", "[MASK] unbe [MASK]able"),
        ([DELETE] * 5, "", ""),
        ([EXCHANGE, KEEP, KEEP, KEEP, KEEP], "zebra unbelievable", "zebra unbeliev"),
    ],
)
def test_joining(numbers, expected, official):
    table = [entry for entry in ENTRIES if not entry.startswith("[")]
    assert augment(WORD, numbers, table.index("zebra")) == expected
    assert augment(WORD, numbers, ENTRIES.index("zebra"), official_rejoin=True) == official


def test_a_random_continuation_joins_its_word():
    table = [entry for entry in ENTRIES if not entry.startswith("[")]
    assert augment(WORD, [KEEP, KEEP, EXCHANGE, KEEP, KEEP], table.index("##zz")) == "dog unzzlievable"
    assert augment(WORD, [KEEP, EXCHANGE, KEEP, KEEP, KEEP], table.index("##zz")) == "dog zzbelievable"


def test_shares():
    """Of many pieces 20 % change: half of those are masked, a tenth exchanged, the rest gone."""
    caption = " ".join(["dog"] * 20000)
    words = CaptionAugmentation(Splits())(caption, np.random.default_rng(0)).split()
    kinds = {"masked": words.count("[MASK]"), "kept": words.count("dog")}
    other = [word for word in words if word not in ("[MASK]", "dog")]
    assert 20000 - len(words) == pytest.approx(1600, abs=120)
    assert kinds["masked"] == pytest.approx(2000, abs=130) and kinds["kept"] == pytest.approx(16000 + 400 / 9, abs=190)
    assert len(other) == pytest.approx(400 * 8 / 9, abs=60) and set(other) <= {re.sub("^##", "", entry) for entry in ENTRIES[6:]}


def test_the_generator_decides_alone(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(ENTRIES) + "\n")
    tokenizer = WordPieceTokenizer(tmp_path / "vocab.txt")
    change = CaptionAugmentation(tokenizer, probability=0.5)
    caption = "dog plays unbelievable grass " * 5
    first = change(caption, np.random.default_rng(3))
    assert first == pickle.loads(pickle.dumps(change))(caption, np.random.default_rng(3)) != change(caption, np.random.default_rng(4))
    ids, mask = tokenizer([first], 60)
    assert (ids == tokenizer.mask).sum() == first.split().count("[MASK]") > 0  # [MASK] in the text is one token
    # nothing but masks, random entries and gaps: without changes the text is read as before
    assert tokenizer.pieces(CaptionAugmentation(tokenizer, probability=0.0)(caption, np.random.default_rng(0))) == tokenizer.pieces(caption)


@pytest.mark.parametrize("shares", [{"probability": 1.5}, {"masked": -0.1}, {"masked": 0.7, "exchanged": 0.4}])
def test_shares_are_checked(shares):
    with pytest.raises(ValueError, match="needs shares in 0..1"):
        CaptionAugmentation(Splits(), **shares)
