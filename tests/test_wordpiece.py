"""WordPiece against transformers' BERT tokenisers, and training of small vocabularies."""

import gzip
import itertools
import json
import pickle

import pytest
import torch

from ofaseg.tokenizers import TokenizerError
from ofaseg.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer, find_vocab, train_wordpiece

TEXTS = [
    "A dog runs across the grass, quickly.",
    "  Naïve Café\tdogs' running; unbelievable!! ",
    "猫 sits on 2 mats [MASK] and [UNK] xylophone",
    "",
    "control\x00\x1f chars\u200b and ﬁ ligatures Ａ",
    "a" * 150,
    "un" + "able" * 20,
]
PIECES = "the a dog cat run ##s ##ning ##ly quick un ##believ ##able across grass , . ! ' 猫 on 2 mat ##n naive cafe sit and ##a c ##h"
PIECES = PIECES.split()


def write_vocab(folder, entries=(*SPECIAL_TOKENS, *PIECES), name="vocab.txt"):
    (folder / name).write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")
    return folder / name


@pytest.fixture
def tokenizer(tmp_path):
    # the special tokens stand anywhere: their ids have to come from the file
    return WordPieceTokenizer(write_vocab(tmp_path, [*PIECES[:4], *reversed(SPECIAL_TOKENS), *PIECES[4:]]))


def test_ids_are_line_numbers(tokenizer):
    assert (tokenizer.mask, tokenizer.sep, tokenizer.cls, tokenizer.unk, tokenizer.pad) == (4, 5, 6, 7, 8)
    assert len(tokenizer) == len(PIECES) + 5 and tokenizer.entries[6] == "[CLS]"
    assert tokenizer.pieces("The dogs [MASK] unbelievable zebra") == ["the", "dog", "##s", "[MASK]", "un", "##believ", "##able", "[UNK]"]
    ids = tokenizer.ids_of(["dog", "##s", "nowhere"])
    assert ids == [2, tokenizer.entries.index("##s"), tokenizer.unk]


def test_padding_and_truncation_keep_both_ends(tokenizer):
    ids, mask = tokenizer(["the dog", "the dog runs across the grass", ""], 5)
    s = tokenizer.entries.index
    assert ids.tolist() == [[6, 0, 2, 5, 8], [6, 0, 2, s("run"), 5], [6, 5, 8, 8, 8]]
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
    assert [part.shape for part in tokenizer([], 5)] == [(0, 5), (0, 5)]
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(copy(TEXTS, 12)[0], tokenizer(TEXTS, 12)[0])
    with pytest.raises(TokenizerError, match="max_length is 1"):
        tokenizer(["a"], 1)


@pytest.mark.parametrize("max_length", [4, 25])
def test_equals_transformers(tmp_path, max_length):
    from transformers import BertTokenizer, BertTokenizerFast

    path = write_vocab(tmp_path)
    ours = WordPieceTokenizer(path)
    for reference in (BertTokenizerFast, BertTokenizer):
        theirs = reference(str(path), do_lower_case=True)
        assert theirs.vocab_size == len(ours)
        encoded = theirs(TEXTS, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
        ids, mask = ours(TEXTS, max_length)
        assert torch.equal(ids, encoded["input_ids"]) and torch.equal(mask, encoded["attention_mask"])
        assert [ours.pieces(text) for text in TEXTS] == [theirs.tokenize(text) for text in TEXTS]


@pytest.mark.parametrize(
    "entries, message",
    [
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"], r"no line \[MASK\], so this is not a BERT vocabulary; give the vocab.txt"),
        (["<!doctype html>", "<html>"], r"no line \[PAD\]"),
        ([*SPECIAL_TOKENS, "a", "b", "a"], "the piece 'a' has several lines"),
    ],
)
def test_another_file_is_refused(tmp_path, entries, message):
    with pytest.raises(TokenizerError, match=message):
        WordPieceTokenizer(write_vocab(tmp_path, entries))


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere.txt: cannot be read .*30,522 lines"):
        WordPieceTokenizer(tmp_path / "nowhere.txt")
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenizerError, match="not UTF-8"):
        WordPieceTokenizer(tmp_path / "vocab.txt")


def test_find_vocab(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    beside = write_vocab(checkpoints)
    other = write_vocab(tmp_path, name="words.txt")
    assert find_vocab(checkpoints) == find_vocab(str(beside)) == beside
    assert find_vocab(other) == other
    assert find_vocab("", None, tmp_path / "empty", checkpoints / "model.pth") == beside
    with pytest.raises(TokenizerError, match="looked for .*words2.txt"):  # what is named is meant, not the fallback
        find_vocab(tmp_path / "words2.txt", checkpoints)
    with pytest.raises(TokenizerError, match="no place was given.*beside the checkpoint"):
        find_vocab(None, "")


def test_a_trained_vocabulary_follows_the_frequencies(tmp_path):
    texts = ["hug hug hug hug hug hug hug hug hug hug", "pug pug pug pug pug", "Pun " * 12, "bun bun bun bun", "hugs hugs hugs hugs hugs"]
    assert train_wordpiece(texts, 5 + 14 + 5, tmp_path / "vocab.txt") == 24
    lines = (tmp_path / "vocab.txt").read_text().split()
    # worked out by hand: ##u ##g 20 times, ##u ##n 16, h ##ug 15, p ##un 12
    assert lines == [*SPECIAL_TOKENS, *(f"##{c}" for c in "bghnpsu"), *"bghnpsu", "##ug", "##un", "hug", "pun", "hugs"]


def test_training_is_deterministic_and_covers_its_texts(tmp_path):
    words = itertools.product(("red", "reddish", "blue"), ("ball", "balloon"), ("mat", "map"))
    texts = [f"a {colour} {thing} on the {place}." for colour, thing, place in words]
    for name in ("one", "two"):
        train_wordpiece(iter(texts if name == "one" else texts[::-1]), 60, tmp_path / name / "vocab.txt")
    assert (tmp_path / "one" / "vocab.txt").read_bytes() == (tmp_path / "two" / "vocab.txt").read_bytes()
    tokenizer = WordPieceTokenizer(find_vocab(tmp_path / "one"))
    assert tokenizer.pieces("red balloon.") == ["red", "balloon", "."]
    assert "".join(piece.removeprefix("##") for piece in tokenizer.pieces("dab")) == "dab"  # an unseen word, of known characters
    assert tokenizer.pieces("zzz") == ["[UNK]"]
    with pytest.raises(TokenizerError, match="has no room for .. characters"):
        train_wordpiece(texts, 8, tmp_path / "small.txt")
    with pytest.raises(TokenizerError, match="no word"):
        train_wordpiece(["", " "], 100, tmp_path / "none.txt")
    assert not (tmp_path / "small.txt").exists() and not (tmp_path / "none.txt").exists()


def test_real_captions_are_covered(real_data, tmp_path):
    with gzip.open(real_data / "captions" / "captions_val2017.json.gz") as file:
        captions = [entry["caption"] for entry in json.load(file)["annotations"][:2000]]
    size = train_wordpiece(captions, 800, tmp_path / "vocab.txt")
    tokenizer = WordPieceTokenizer(tmp_path / "vocab.txt")
    assert size == len(tokenizer) == 800
    ids, mask = tokenizer(captions, 25)
    assert not (ids == tokenizer.unk).any() and (mask.sum(1) >= 8).float().mean() > 0.99
