"""Models in local folders and files: nothing is downloaded, and the numbers are those of the models themselves."""

import json

import pytest
import torch

from ofaseg.subclasses.encoders import TransformersTextEncoder
from ofaseg.subclasses.providers import FileProvider, ProviderError, TransformersProvider

WORDS = ["[PAD]", "[UNK]", "[EOS]", "red", "old", "cat", "dog", "[", "]", '"', ","]


def save_tokenizer(folder, **options):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **options).save_pretrained(folder)


def save_language_model(folder, **options):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    sizes = dict(vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=1.0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=2, eos_token_id=2)).eval()
    model.save_pretrained(folder)
    save_tokenizer(folder, **options)
    return model


@pytest.mark.parametrize("template, around", [("", ""), ("{% for m in messages %}red {{ m.content }} old{% endfor %}", "red {} old")])
def test_the_likeliest_words_of_a_local_model(tmp_path, template, around):
    """The same as one forward pass per word, through the chat template where there is one."""
    model = save_language_model(tmp_path / "m", **({"chat_template": template} if template else {}))
    answer = TransformersProvider(tmp_path / "m", max_tokens=8).complete("cat", "old cat dog")
    ids = [WORDS.index(word) for word in (around.format("old cat dog") if around else "old cat dog").split()]
    start = len(ids)
    while len(ids) < start + 8 and (len(ids) == start or ids[-1] != 2):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert answer.text.split() == [WORDS[k] for k in ids[start:] if k > 2]
    assert answer.details["usage"] == {"prompt_tokens": start, "completion_tokens": len(ids) - start}


def test_drawn_words_are_the_same_next_time_and_leave_the_seed_alone(tmp_path):
    save_language_model(tmp_path / "m")
    provider = TransformersProvider(tmp_path / "m", max_tokens=12, temperature=3.0)
    torch.manual_seed(7)
    texts = [provider.complete("cat", "red cat").text]
    drawn = torch.rand(1)
    texts.append(provider.complete("cat", "red cat").text)
    torch.manual_seed(7)
    assert texts[0] == texts[1] and drawn == torch.rand(1)
    assert provider.complete("cat", "old dog").text != texts[0]


def test_a_prompt_that_does_not_fit(tmp_path):
    save_language_model(tmp_path / "m")
    with pytest.raises(ProviderError, match="31 tokens and an answer of 8 in 32 positions") as caught:
        TransformersProvider(tmp_path / "m", max_tokens=8).complete("cat", "red " * 31)
    assert caught.value.fatal


def test_identity_is_of_the_files_and_the_parameters(tmp_path):
    save_language_model(tmp_path / "m")
    first = TransformersProvider(tmp_path / "m", max_tokens=8).identity()
    assert first["model"] == "m" and str(tmp_path) not in json.dumps(first)
    assert TransformersProvider(tmp_path / "m", max_tokens=9).identity() != first
    (tmp_path / "m" / "extra.txt").write_text("x")
    assert TransformersProvider(tmp_path / "m", max_tokens=8).identity()["files"] != first["files"]


@pytest.mark.parametrize("make", [TransformersProvider, TransformersTextEncoder])
def test_folders_that_hold_no_model(tmp_path, make):
    with pytest.raises(ValueError, match="no model folder"):
        make(tmp_path / "org/name-on-a-hub")
    save_tokenizer(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="not a usable"):
        make(tmp_path / "m")


def test_answers_from_a_file(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"cat": ["tabby"], "dog": "Here: [1]", "bus": {"bus": ["coach"]}}))
    provider = FileProvider(path)
    texts = [provider.complete(name, "?").text for name in ("cat", "dog", "bus")]
    assert texts == ['["tabby"]', "Here: [1]", '{"bus": ["coach"]}']
    with pytest.raises(ProviderError, match="no answer for class 'boat'") as caught:
        provider.complete("boat", "?")
    assert not caught.value.retry and not caught.value.fatal
    for content, message in (("[1]", "holds a list"), ("{", "cannot be read as JSON")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            FileProvider(path)


def test_a_sentence_encoder_is_the_mean_over_words(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = dict(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertModel(BertConfig(**sizes)).eval()
    model.save_pretrained(tmp_path / "m")
    save_tokenizer(tmp_path / "m")
    vectors = TransformersTextEncoder(tmp_path / "m")(["red cat", "dog", "old red dog"])  # of several lengths: padding is left out
    with torch.no_grad():
        one = model(input_ids=torch.tensor([[WORDS.index("dog")]])).last_hidden_state[0].mean(0)
        two = model(input_ids=torch.tensor([[WORDS.index("red"), WORDS.index("cat")]])).last_hidden_state[0].mean(0)
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors[:2], torch.nn.functional.normalize(torch.stack([two, one]), dim=1), atol=1e-5, rtol=1e-5)


def test_a_clip_model_gives_its_text_features(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    layer = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = dict(**layer, vocab_size=len(WORDS), max_position_embeddings=8, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    config = CLIPConfig(text_config=text, vision_config=dict(**layer, image_size=8, patch_size=4), projection_dim=12)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "m")
    save_tokenizer(tmp_path / "m", model_max_length=8)
    vectors = TransformersTextEncoder(tmp_path / "m")(["red cat", "old"])
    with torch.no_grad():
        states = model.text_model(input_ids=torch.tensor([[3, 5]])).pooler_output
        expected = torch.nn.functional.normalize(model.text_projection(states), dim=1)
    assert vectors.shape == (2, 12)
    torch.testing.assert_close(vectors[:1], expected, atol=1e-5, rtol=1e-5)
