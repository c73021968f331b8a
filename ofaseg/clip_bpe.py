"""CLIP's tokenizer: lower-case byte-level BPE over the merges file that OpenAI published with CLIP.

Text is repaired (ftfy), HTML entities are resolved, blanks joined and letters made small; words are split by CLIP's own rule, and
the pieces of a word end in "</w>". Ids: 256 bytes, 256 bytes that end a word, one per merge, then start and end of text.
"""

import gzip
import html
import os
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Optional, Union

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ofaseg.tokenizers import TokenizerError

MERGES_NAMES = ("bpe_simple_vocab_16e6.txt.gz", "clip_bpe_simple_vocab_16e6.txt.gz")
MERGES_HINT = f"give {MERGES_NAMES[0]}, which OpenAI's CLIP and the package open_clip_torch (pip install 'ofaseg[clip]') hold"
NUM_MERGES = 49152 - 256 - 2
"""The file has more lines; CLIP was trained with these."""

START, END = "<start_of_text>", "<end_of_text>"
WORD_END = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Text as CLIP reads it.

    Args:
        merges_file: gzip text of a head line and one pair of pieces per line.

    Attributes:
        sot, eot: ids of start and end of text.
        pad: 0, the id that stands after the end. It is a piece, too ("!"): the mask says which is meant.

    Raises:
        TokenizerError: the file is missing, foreign or cut off, or the package ftfy is missing.
    """

    pad = 0

    def __init__(self, merges_file):
        try:
            import ftfy
        except ImportError as error:
            raise TokenizerError("CLIP's tokenizer needs the package ftfy: pip install 'ofaseg[clip]'") from error
        self._repair = ftfy.fix_text
        self.merges_file = str(merges_file)
        merges = _read_merges(self.merges_file)
        letters = _byte_letters()
        pieces = [*letters, *(letter + WORD_END for letter in letters), *(first + second for first, second in merges), START, END]
        self._ids = {piece: k for k, piece in enumerate(pieces)}
        self.sot, self.eot = self._ids[START], self._ids[END]
        self._tokenizer = Tokenizer(models.BPE(self._ids, merges, end_of_word_suffix=WORD_END))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._tokenizer.add_special_tokens([START, END])  # written in a text they are one piece, as in CLIP

    def __len__(self) -> int:
        return len(self._ids)

    def __call__(self, texts: list[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, mask), both (len(texts), max_length) int64: start, pieces, end, padding; mask 1 for tokens, 0 for padding.

        Long texts lose their last pieces, never start and end.

        Raises:
            TokenizerError: `max_length` is under 2.
        """
        if max_length < 2:
            raise TokenizerError(f"max_length is {max_length}; start and end alone take 2")
        ids = torch.full((len(texts), max_length), self.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, text in enumerate(texts):
            row = [self.sot, *self._encode(text).ids[: max_length - 2], self.eot]
            ids[k, : len(row)] = torch.tensor(row)
            mask[k, : len(row)] = 1
        return ids, mask

    def _encode(self, text: str):
        clean = html.unescape(html.unescape(self._repair(text)))
        # one by one: encode_batch starts threads, of which forked data workers would inherit a broken pool
        return self._tokenizer.encode(" ".join(clean.split()).lower(), add_special_tokens=False)

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, without start and end."""
        return self._encode(text).tokens


def _byte_letters() -> list[str]:
    """The letter that stands for each byte, in the order of their ids: printable bytes first, as GPT-2 wrote its table."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(256 - len(printable))]


def _read_merges(merges_file: str) -> list[tuple[str, str]]:
    try:
        lines = gzip.decompress(Path(merges_file).read_bytes()).decode("utf-8").split("\n")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TokenizerError(f"{merges_file}: not a complete gzip text file ({error}); copy it again: {MERGES_HINT}") from error
    except OSError as error:
        raise TokenizerError(f"{merges_file}: cannot be read ({error.strerror or error}); {MERGES_HINT}") from error
    merges = [tuple(line.split()) for line in lines[1 : NUM_MERGES + 1]]
    wrong = next((number for number, merge in enumerate(merges, 2) if len(merge) != 2), None)
    if wrong is not None or len(merges) < NUM_MERGES:
        reason = f"line {wrong} is no pair of pieces" if wrong else f"{len(merges)} merges, CLIP has {NUM_MERGES}"
        raise TokenizerError(f"{merges_file}: {reason}; {MERGES_HINT}")
    return merges


def find_merges(path: Optional[Union[str, os.PathLike]]) -> Path:
    """The merges file that is meant: `path` is the file or its folder; without one, the file inside the package open_clip_torch.

    Raises:
        TokenizerError: there is none; the message says where to get it.
    """
    if path:
        place = Path(path)
        found = place if not place.is_dir() else next((place / name for name in MERGES_NAMES if (place / name).is_file()), None)
        if found is None:
            raise TokenizerError(f"{place}: no {' or '.join(MERGES_NAMES)} in this folder; {MERGES_HINT}")
        return found
    package = find_spec("open_clip")  # without importing it, which takes seconds
    for folder in package.submodule_search_locations if package else ():
        if (Path(folder) / MERGES_NAMES[0]).is_file():
            return Path(folder) / MERGES_NAMES[0]
    raise TokenizerError(f"no merges of CLIP's tokenizer: the package open_clip_torch is missing; {MERGES_HINT}")
