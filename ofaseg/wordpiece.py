"""BERT's uncased WordPiece: text <-> pieces <-> ids over a vocab.txt, and training of small vocabularies.

Normaliser and pre-tokeniser are those of `bert-base-uncased`: lower case, accents stripped, split at blanks, punctuation and
Chinese characters. Ids are line numbers of the file, those of the special tokens too.
"""

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Optional, Union

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from ofaseg.atomic import atomic_write
from ofaseg.tokenizers import TokenizerError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_NAME = "vocab.txt"
VOCAB_HINT = (
    "give the vocab.txt of bert-base-uncased (30,522 lines; it is among the files of that model's page on the Hugging Face hub), "
    "or put it beside the checkpoint"
)
_CONTINUES = "##"


def _normaliser() -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True)


class WordPieceTokenizer:
    """Text as BERT reads it.

    Args:
        vocab_file: one piece per line; pieces inside a word begin with "##".

    Attributes:
        entries: the pieces in the order of their ids.
        pad, unk, cls, sep, mask: ids of the special tokens.

    Raises:
        TokenizerError: the file is missing, no UTF-8 text, lacks a special token or repeats a piece.
    """

    def __init__(self, vocab_file):
        self.vocab_file = str(vocab_file)
        self.entries = _read_entries(self.vocab_file)
        self._ids = {piece: k for k, piece in enumerate(self.entries)}
        missing = [token for token in SPECIAL_TOKENS if token not in self._ids]
        if missing:
            raise TokenizerError(f"{vocab_file}: no line {missing[0]}, so this is not a BERT vocabulary; {VOCAB_HINT}")
        if len(self._ids) != len(self.entries):
            repeated = next(piece for piece, count in Counter(self.entries).items() if count > 1)
            raise TokenizerError(f"{vocab_file}: the piece {repeated!r} has several lines, ids would be ambiguous; copy the file again")
        self.pad, self.unk, self.cls, self.sep, self.mask = (self._ids[token] for token in SPECIAL_TOKENS)
        self._tokenizer = Tokenizer(models.WordPiece(self._ids, unk_token="[UNK]", max_input_chars_per_word=100))
        self._tokenizer.normalizer = _normaliser()
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.add_special_tokens(list(SPECIAL_TOKENS))  # "[MASK]" in a text is one piece, not three

    def __len__(self) -> int:
        return len(self.entries)

    def __call__(self, texts: list[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, mask), both (len(texts), max_length) int64: [CLS] pieces [SEP] [PAD]...; mask 1 for tokens, 0 for padding.

        Long texts lose their last pieces, never [CLS] and [SEP].

        Raises:
            TokenizerError: `max_length` is under 2.
        """
        if max_length < 2:
            raise TokenizerError(f"max_length is {max_length}; [CLS] and [SEP] alone take 2")
        ids = torch.full((len(texts), max_length), self.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, text in enumerate(texts):
            row = [self.cls, *self._encode(text).ids[: max_length - 2], self.sep]
            ids[k, : len(row)] = torch.tensor(row)
            mask[k, : len(row)] = 1
        return ids, mask

    def _encode(self, text: str):
        # one by one: encode_batch starts threads, of which forked data workers would inherit a broken pool
        return self._tokenizer.encode(text, add_special_tokens=False)

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, without [CLS] and [SEP]."""
        return self._encode(text).tokens

    def ids_of(self, pieces: Iterable[str]) -> list[int]:
        """Their ids; `unk` for a piece that the vocabulary lacks."""
        return [self._ids.get(piece, self.unk) for piece in pieces]


def _read_entries(vocab_file: str) -> list[str]:
    try:
        text = Path(vocab_file).read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"{vocab_file}: cannot be read ({error.strerror or error}); {VOCAB_HINT}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{vocab_file}: not UTF-8 text ({error}); {VOCAB_HINT}") from error
    return [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")]


def find_vocab(path, *fallbacks: Optional[Union[str, os.PathLike]]) -> Path:
    """The vocab.txt that is meant: `path`, when given, is the file or its folder; without it the first place that has one.

    Args:
        path: a .txt file or a folder that holds vocab.txt; "" or None to look in the fallbacks.
        fallbacks: files, folders, or checkpoints with vocab.txt beside them; empty ones are passed over.

    Raises:
        TokenizerError: there is none; the message names the places and says where to get it.
    """
    places = [_vocab_place(place) for place in ([path] if path else fallbacks) if place]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = f"looked for {', '.join(map(str, places))}" if places else "no place was given"
        raise TokenizerError(f"no WordPiece vocabulary ({looked}); {VOCAB_HINT}")
    return found


def _vocab_place(place) -> Path:
    place = Path(place)
    if place.is_dir():
        return place / VOCAB_NAME
    return place if place.suffix == ".txt" else place.parent / VOCAB_NAME


def train_wordpiece(texts: Iterable[str], size: int, out_file, max_alphabet: int = 1000) -> int:
    """Learns a vocabulary from texts and writes it as vocab.txt, atomically; the same texts give the same file.

    The special tokens come first, then characters (at the beginning of words, and inside), then the pieces that arise from joining the
    most frequent pair of neighbours, over and over. (The trainer of the `tokenizers` wheel does the same, but breaks ties by the order
    of its hash tables.)

    Args:
        texts: sentences, such as captions.
        size: lines of the file; fewer when nothing is left to join.
        max_alphabet: so many characters are kept, the most frequent ones; words with others become [UNK].

    Returns:
        the number of lines written.

    Raises:
        TokenizerError: `size` has no room for the characters, or there is no word.
    """
    words = _count_words(texts)
    if not words:
        raise TokenizerError("no word to learn a vocabulary from; give texts")
    characters = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    kept = {character for character, _ in sorted(characters.items(), key=lambda item: (-item[1], item[0]))[:max_alphabet]}
    spelled = {word: _spell(word) for word in sorted(words) if kept.issuperset(word)}
    # letters and digits at the beginning of a word and inside, so that unseen words of known letters are no [UNK]
    alphabet = {*kept, *(_CONTINUES + character for character in kept if character.isalnum())}
    alphabet = sorted(alphabet.union(*spelled.values()))
    room = size - len(SPECIAL_TOKENS) - len(alphabet)
    if room < 0:
        raise TokenizerError(f"a vocabulary of {size} has no room for {len(alphabet)} characters and the special tokens; enlarge it")
    entries = [*SPECIAL_TOKENS, *alphabet, *_joined_pieces(spelled, words, room, set(alphabet))]
    with atomic_write(out_file, "w") as file:
        file.writelines(f"{entry}\n" for entry in entries)
    return len(entries)


def _count_words(texts: Iterable[str]) -> Counter:
    normaliser, splitter, words = _normaliser(), pre_tokenizers.BertPreTokenizer(), Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normaliser.normalize_str(text)))
    return words


def _spell(word: str) -> list[str]:
    return [word[0], *(_CONTINUES + character for character in word[1:])]


def _joined_pieces(spelled: dict[str, list[str]], counts: Counter, room: int, known: set[str]) -> list[str]:
    """Up to `room` new pieces; of equally frequent pairs the first in the alphabet is joined. Changes `spelled`."""
    frequency, holders = Counter(), defaultdict(set)
    for word, symbols in spelled.items():
        for pair in zip(symbols, symbols[1:]):
            frequency[pair] += counts[word]
            holders[pair].add(word)
    queue = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(queue)
    pieces: list[str] = []
    while queue and len(pieces) < room:
        count, pair = heapq.heappop(queue)
        if -count != frequency[pair] or not count:  # an older entry of a pair whose frequency has changed
            continue
        piece = pair[0] + pair[1].removeprefix(_CONTINUES)
        if piece not in known:  # two pairs may spell one piece
            known.add(piece)
            pieces.append(piece)
        changed = set()
        for word in holders.pop(pair):
            before, after = spelled[word], _join(spelled[word], pair, piece)
            for old in zip(before, before[1:]):
                frequency[old] -= counts[word]
                changed.add(old)
            for new in zip(after, after[1:]):
                frequency[new] += counts[word]
                holders[new].add(word)
                changed.add(new)
            spelled[word] = after
        for other in changed:
            if frequency[other] > 0:
                heapq.heappush(queue, (-frequency[other], other))
    return pieces


def _join(symbols: list[str], pair: tuple[str, str], piece: str) -> list[str]:
    result, k = [], 0
    while k < len(symbols):
        joined = tuple(symbols[k : k + 2]) == pair
        result.append(piece if joined else symbols[k])
        k += 2 if joined else 1
    return result
