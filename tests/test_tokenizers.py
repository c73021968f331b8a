import io

import pytest
import sentencepiece

from ofaseg import tokenizers


def write_dictionary(folder, symbols):
    (folder / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols), encoding="utf-8")


def test_dictionary_layout_of_words(tmp_path):
    write_dictionary(tmp_path, ["red", "ball"])
    tokenizer = tokenizers.build_tokenizer(str(tmp_path))
    dictionary = tokenizers.build_dictionary(str(tmp_path), tokenizer, code_dict_size=3, num_bins=2, num_classes=4)
    assert [dictionary[i] for i in range(6)] == ["<s>", "<pad>", "</s>", "<unk>", "red", "ball"]
    assert [dictionary[i] for i in range(6, len(dictionary))] == (
        ["<mask>", "<code_0>", "<code_1>", "<code_2>", "<bin_0>", "<bin_1>", "<seg_0>", "<seg_1>", "<seg_2>", "<seg_3>", "<seg_4>"]
    )
    assert tokenizers.encode_text("Ball red", tokenizer, dictionary) == [5, 4]
    with pytest.raises(tokenizers.TokenizerError, match="'zebra' in 'red zebra' is not covered"):
        tokenizers.encode_text("red zebra", tokenizer, dictionary)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(tokenizers.TokenizerError, match="is not a folder"):
        tokenizers.build_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(tokenizers.TokenizerError, match="encoder.json"):
        tokenizers.build_tokenizer(str(tmp_path), "gpt2")
    with pytest.raises(tokenizers.TokenizerError, match="no dict.txt"):
        tokenizers.build_dictionary(str(tmp_path), tokenizers.build_tokenizer(str(tmp_path)), 0, 0, 1)
    with pytest.raises(tokenizers.TokenizerError, match="unknown tokenizer 'bert'"):
        tokenizers.build_tokenizer(str(tmp_path), "bert")


def test_sentencepiece_model_of_another_language(tmp_path):
    lines = ["собака бежит по траве", "кошка сидит на стене", "небо над рекой", "трава и стена"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=60, minloglevel=2, hard_vocab_limit=False
    )
    (tmp_path / "ru.model").write_bytes(model.getvalue())
    tokenizer = tokenizers.build_tokenizer(str(tmp_path), "sentencepiece")
    dictionary = tokenizers.build_dictionary(str(tmp_path), tokenizer, 0, 0, 2)
    ids = tokenizers.encode_text("кошка на траве", tokenizer, dictionary)
    assert "".join(dictionary[i] for i in ids) == "▁кошка▁на▁траве"


def test_gpt2_ids_of_the_published_prompt(real_data):
    """Expected ids are those of the official dictionary."""
    folder = str(real_data / "bpe")
    tokenizer = tokenizers.build_tokenizer(folder, "gpt2")
    dictionary = tokenizers.build_dictionary(folder, tokenizer, 8192, 1000, 15)
    prompt = tokenizers.encode_text("what is the segmentation map of the image? object:", tokenizer, dictionary)
    assert prompt == [99, 16, 5, 2835, 1258, 5456, 9, 5, 2274, 116, 7626, 35]
    assert tokenizers.encode_text("frisbee", tokenizer, dictionary) == [6664, 354, 14650]
    assert tokenizers.encode_text("concrete wall", tokenizer, dictionary) == [6369, 2204]
    assert dictionary.index("<mask>") == 50264 and dictionary.index("<bin_0>") == 58457
    assert dictionary.index("<seg_15>") == 59472 and len(dictionary) == 59473


@pytest.mark.parametrize("name, tokens, longer", [("coco_unseen15", 36, 5), ("ade150", 215, 38), ("coco_stuff171", 239, 48)])
def test_published_class_lists_have_the_published_token_counts(real_data, name, tokens, longer):
    """Source length and number of names with several pieces, as in the published runs."""
    from ofaseg.prompts import SEGMENTATION_PROMPT, source_token_ids
    from ofaseg.vocabulary import parse_class_names
    from tests.conftest import ROOT

    names = parse_class_names(str(ROOT / "data_prep" / "class_names" / f"{name}.txt"))
    folder = str(real_data / "bpe")
    tokenizer = tokenizers.build_tokenizer(folder)
    dictionary = tokenizers.build_dictionary(folder, tokenizer, 8192, 1000, len(names))
    ids = [tokenizers.encode_text(name, tokenizer, dictionary) for name in names]
    prompt, unknown = (tokenizers.encode_text(text, tokenizer, dictionary) for text in (SEGMENTATION_PROMPT, "unknown"))
    assert len(source_token_ids(prompt, ids, unknown, 0, 2, 1024, names)) == tokens
    assert sum(len(pieces) > 1 for pieces in ids) == longer
