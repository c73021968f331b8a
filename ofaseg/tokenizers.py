"""Text to dictionary ids: GPT-2 BPE, SentencePiece and plain words behind one call, and OFA's dictionary layout.

OFA encodes every whitespace-separated word on its own, each with one leading blank, and joins the pieces.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fairseq.data import Dictionary
from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

GPT2_FILES_HINT = (
    "GPT-2 BPE needs encoder.json, vocab.bpe and dict.txt in --bpe-dir (OFA's repository ships them in utils/BPE; "
    "fairseq publishes the same files for RoBERTa)"
)


class TokenizerError(ValueError):
    """A tokenizer file is missing or foreign, or a word cannot be encoded."""


class Tokenizer(Protocol):
    """Turns one word (no blanks inside) into dictionary symbols."""

    def pieces(self, word: str) -> list[str]: ...


class GPT2Tokenizer:
    """GPT-2 byte-level BPE; its symbols are decimal piece ids, as in fairseq's `dict.txt`."""

    def __init__(self, encoder_json: Path, vocab_bpe: Path):
        from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

        self._encoder = get_encoder(str(encoder_json), str(vocab_bpe))

    def pieces(self, word: str) -> list[str]:
        return [str(piece) for piece in self._encoder.encode(" " + word)]


class SentencePieceTokenizer:
    """A SentencePiece model of any language."""

    def __init__(self, model_file: Path):
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))

    def pieces(self, word: str) -> list[str]:
        return self.processor.encode(word, out_type=str)


@dataclass
class WordTokenizerConfig(FairseqDataclass):
    pass


@register_bpe("word", dataclass=WordTokenizerConfig)
class WordTokenizer:
    """Whole lower-case words, for small closed dictionaries such as the one of the drawn world.

    Registered with fairseq too, whose `--bpe` flag this is.
    """

    def __init__(self, cfg=None):
        pass

    def encode(self, text: str) -> str:
        return text.lower()

    def decode(self, text: str) -> str:
        return text

    def pieces(self, word: str) -> list[str]:
        return [word.lower()]


def _find(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def build_tokenizer(bpe_dir: str, name: str = "") -> Tokenizer:
    """The tokenizer whose files lie in `bpe_dir`; `name` (gpt2, sentencepiece, word) settles it when several could be meant.

    Raises:
        TokenizerError: the folder or a file is missing, or `name` is unknown.
    """
    folder = Path(bpe_dir)
    if not bpe_dir or not folder.is_dir():
        raise TokenizerError(f"--bpe-dir {bpe_dir!r} is not a folder; {GPT2_FILES_HINT}")
    encoder, merges = _find(folder, "encoder.json", "gpt2_encoder.json"), _find(folder, "vocab.bpe", "gpt2_vocab.bpe")
    models = sorted(folder.glob("*.model"))
    if not name:
        name = "gpt2" if encoder and merges else "sentencepiece" if models else "word"
    if name == "gpt2":
        if not (encoder and merges):
            raise TokenizerError(f"{folder}: {GPT2_FILES_HINT}")
        return GPT2Tokenizer(encoder, merges)
    if name == "sentencepiece":
        if len(models) != 1:
            raise TokenizerError(f"{folder}: --bpe sentencepiece needs exactly one *.model file there, found {len(models)}")
        return SentencePieceTokenizer(models[0])
    if name == "word":
        return WordTokenizer()
    raise TokenizerError(f"unknown tokenizer {name!r}; known: gpt2, sentencepiece, word")


def build_dictionary(bpe_dir: str, tokenizer: Tokenizer, code_dict_size: int, num_bins: int, num_classes: int) -> Dictionary:
    """OFA's dictionary: specials 0..3, text symbols, `<mask>`, `<code_i>`, `<bin_i>`, then `<seg_0>`..`<seg_C>` (C+1 symbols).

    A SentencePiece folder without `dict.txt` takes the model's own pieces as text symbols.
    """
    folder = Path(bpe_dir)
    path = _find(folder, "dict.txt", "gpt2_dict.txt")
    if path is not None:
        dictionary = Dictionary.load(str(path))
    elif isinstance(tokenizer, SentencePieceTokenizer):
        dictionary = Dictionary()
        for piece in range(tokenizer.processor.get_piece_size()):
            if not (tokenizer.processor.is_unknown(piece) or tokenizer.processor.is_control(piece)):
                dictionary.add_symbol(tokenizer.processor.id_to_piece(piece))
    else:
        raise TokenizerError(f"{folder}: no dict.txt; {GPT2_FILES_HINT}")
    dictionary.add_symbol("<mask>")
    for prefix, count in (("code", code_dict_size), ("bin", num_bins), ("seg", num_classes + 1)):
        for i in range(count):
            dictionary.add_symbol(f"<{prefix}_{i}>")
    return dictionary


def encode_text(text: str, tokenizer: Tokenizer, dictionary: Dictionary) -> list[int]:
    """Dictionary ids of `text`, without bos and eos.

    Raises:
        TokenizerError: a word has a piece that the dictionary lacks (its embedding would be meaningless).
    """
    ids = []
    for word in text.split():
        pieces = tokenizer.pieces(word)
        for piece in pieces:
            index = dictionary.index(piece)
            if index == dictionary.unk():
                raise TokenizerError(
                    f"the word {word!r} in {text!r} is not covered by this model's dictionary (piece {piece!r}); "
                    "use other words, or a model with a larger dictionary"
                )
            ids.append(index)
    return ids
