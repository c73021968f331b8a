"""CLIP's tokenizer against open_clip's own."""

import gzip
import pickle
from pathlib import Path

import pytest
import torch

from ofaseg.clip_bpe import NUM_MERGES, ClipTokenizer, find_merges
from ofaseg.prompts import TEMPLATES
from ofaseg.tokenizers import TokenizerError
from tests.conftest import ROOT

TEXTS = [
    "A photo of a cat.",
    "  Naïve Café\tdogs' they're WE'LL don't; unbelievable!! ",
    "Caf&eacute; &amp;amp; bar &lt;3",
    "猫 sits on 2 mats, 1234 5,678.90 ½ ①",
    "",
    "emoji 😀👍🏽 and \u200b zero width, soft\u00adhyphen",
    "mojibake: schÃ¶n â€œquotedâ€\x9d",
    "under_score-hyphen/slash (SUV) [E-bike]",
    "ﬁ ligatures Ａ full-width ǅ titlecase İstanbul",
    "<end_of_text> inside <START_OF_TEXT>",
    "word " * 100,
    "x" * 300,
]


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(find_merges(""))


@pytest.fixture(scope="module")
def theirs():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@pytest.mark.parametrize("max_length", [6, 77])
def test_equals_open_clip(tokenizer, theirs, max_length):
    ids, mask = tokenizer(TEXTS, max_length)
    assert torch.equal(ids, theirs(TEXTS, max_length))
    assert ids.dtype == mask.dtype == torch.int64
    for row, kept in zip(ids.tolist(), mask.tolist()):
        length = sum(kept)
        assert kept == [1] * length + [0] * (max_length - length) and not any(row[length:])
        assert row[0] == tokenizer.sot and row[length - 1] == tokenizer.eot


def test_equals_open_clip_on_class_names(tokenizer, theirs):
    files = sorted((ROOT / "data_prep" / "class_names").glob("*.txt"))
    names = sorted({name for file in files for name in file.read_text(encoding="utf-8").split("\n") if name})
    texts = [TEMPLATES["imagenet80"][k % 80].replace("{}", name) for k, name in enumerate(names)]
    assert len(texts) > 250 and torch.equal(tokenizer(texts, 77)[0], theirs(texts, 77))


def test_shape_of_the_vocabulary(tokenizer):
    assert len(tokenizer) == 49408 and (tokenizer.sot, tokenizer.eot, tokenizer.pad) == (49406, 49407, 0)
    assert tokenizer.pieces("Dogs' xylophone") == ["dogs</w>", "'</w>", "xy", "lo", "phone</w>"]
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(copy(TEXTS, 12)[0], tokenizer(TEXTS, 12)[0])
    assert [part.shape for part in tokenizer([], 5)] == [(0, 5), (0, 5)]
    with pytest.raises(TokenizerError, match="max_length is 1"):
        tokenizer(["a"], 1)


def test_the_published_file(real_data, tokenizer):
    assert ClipTokenizer(find_merges(real_data / "bpe")).pieces("unbelievable") == tokenizer.pieces("unbelievable")


def test_wrong_files(tmp_path):
    with pytest.raises(TokenizerError, match="no bpe_simple_vocab_16e6.txt.gz or"):
        find_merges(tmp_path)
    with pytest.raises(TokenizerError, match="cannot be read"):
        ClipTokenizer(find_merges(tmp_path / "nowhere.gz"))
    file = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    whole = Path(find_merges("")).read_bytes()
    for content, message in (
        (b"a b\n", "not a complete gzip text file"),
        (whole[:5000], "not a complete gzip text file"),
        (gzip.compress(b"head\na b\n" + b"\n" * 9), "line 3 is no pair"),
        (gzip.compress(b"head\n" + b"a b\n" * 5), "line 7 is no pair"),
        (gzip.compress(b"head\n" + b"\n".join([b"a b"] * 5)), f"5 merges, CLIP has {NUM_MERGES}"),
    ):
        file.write_bytes(content)
        assert find_merges(tmp_path) == find_merges(file) == file
        with pytest.raises(TokenizerError, match=message):
            ClipTokenizer(file)
