"""Random changes of captions in training: pieces are masked, exchanged or left out (SimSeg, after ZeroVL's recipe)."""

from typing import Protocol

import numpy as np

_CONTINUES = "##"
_OFFICIAL_LIMIT = 2


class PieceTokenizer(Protocol):
    """What is needed of a tokeniser: `ofaseg.wordpiece.WordPieceTokenizer`."""

    entries: list[str]

    def pieces(self, text: str) -> list[str]: ...


class CaptionAugmentation:
    """Caption -> caption. Each piece is altered with `probability`: masked, exchanged for a random entry of the vocabulary, or deleted.

    The pieces are joined to words again, so that the result is a text for the tokeniser. A piece from inside a word joins what is
    left of its own word; without a rest it stands alone. No piece gets lost on the way, and special tokens are no random entries.

    Args:
        tokenizer: splits captions into pieces.
        probability: of each piece to be altered.
        masked, exchanged: shares of the altered pieces that become [MASK] or a random entry; the others are deleted.
        official_rejoin: join as the released training code does, for comparisons with it: a piece takes up the next two
            continuation pieces at most, whatever word they are from; further ones, and those without a piece before them, get lost;
            random entries may be special tokens. Off by default: it loses parts of words that were not chosen for deletion.

    Raises:
        ValueError: a share outside 0..1.
    """

    def __init__(
        self,
        tokenizer: PieceTokenizer,
        probability: float = 0.2,
        masked: float = 0.5,
        exchanged: float = 0.1,
        official_rejoin: bool = False,
    ):
        if not (0 <= probability <= 1 and 0 <= masked and 0 <= exchanged and masked + exchanged <= 1):
            problem = f"caption augmentation needs shares in 0..1, got probability {probability}, masked {masked}, exchanged {exchanged}"
            raise ValueError(f"{problem} (masked and exchanged together at most 1)")
        self.tokenizer, self.probability, self.official_rejoin = tokenizer, probability, official_rejoin
        self._bounds = (probability * masked, probability * (masked + exchanged))
        # drawn from for every exchanged piece, so it is made once
        self._table = np.array([entry for entry in tokenizer.entries if official_rejoin or not entry.startswith("[")] or ["[UNK]"])

    def __call__(self, caption: str, rng: np.random.Generator) -> str:
        """The changed caption; the same generator state gives the same one. It may be empty."""
        pieces = self.tokenizer.pieces(caption)
        draws = rng.random(len(pieces))
        to_mask, to_exchange = self._bounds
        replacements = self._table[rng.integers(len(self._table), size=len(pieces))]
        altered = []
        for piece, draw, replacement in zip(pieces, draws, replacements):
            if draw < to_mask:
                altered.append("[MASK]")
            elif draw < to_exchange:
                altered.append(str(replacement))
            else:
                altered.append(None if draw < self.probability else piece)
        if self.official_rejoin:
            return " ".join(_rejoin_officially([piece for piece in altered if piece is not None]))
        return " ".join(_rejoin(pieces, altered))


def _rejoin(pieces: list[str], altered: list) -> list[str]:
    """Words of the altered pieces (None: deleted); `pieces` tells where each word began."""
    words: list[str] = []
    begins = True
    for piece, left in zip(pieces, altered):
        begins = begins or not piece.startswith(_CONTINUES)
        if left is None:
            continue
        text = left.removeprefix(_CONTINUES) or left
        continues = left.startswith(_CONTINUES) and not begins and not words[-1].endswith("[MASK]")
        if continues:
            words[-1] += text
        else:
            words.append(text)
        begins = False
    return words


def _rejoin_officially(pieces: list[str]) -> list[str]:
    """Words of at most three pieces; continuation pieces beyond that or without a beginning are dropped."""
    words: list[str] = []
    room = 0
    for piece in pieces:
        if not piece.startswith(_CONTINUES):
            words.append(piece)
            room = _OFFICIAL_LIMIT
        elif room:
            words[-1] += piece.removeprefix(_CONTINUES)
            room -= 1
    return words
