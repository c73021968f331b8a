"""Learned prompts: the shared beginning against whole texts through open_clip's own blocks, lengths, fixed tokens, gradients."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.models.clip_dense import architecture_config, build_towers
from ofaseg.models.text_encoders.learned_prompt import SIGNALS, TASK_TEXTS, TASK_TOKENS, LearnedPrompt, encode_with_beginning, pack_names

NAMES = [[3], [7, 8, 9], [5, 3]]
WORDS = torch.tensor([40, 41, 42])


@pytest.fixture(scope="module")
def clip():
    pytest.importorskip("open_clip")
    torch.manual_seed(2)
    clip = build_towers(architecture_config("clip_nano", vocab_size=60, context_length=24)).eval().requires_grad_(False)
    for parameter in clip.transformer.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return clip


@pytest.fixture
def prompt():
    prompt = LearnedPrompt(48, 4, 3)
    for name in SIGNALS:
        getattr(prompt, f"{name}_signal").normal_()
    return prompt


def whole_text(clip, prompt, name):
    """One text, written out in order, through all blocks at its full length with CLIP's own mask."""
    words = clip.token_embedding
    parts = [words(WORDS), prompt.task_prompt, prompt.start_signal, prompt.class_prompt, words(torch.tensor(name))]
    parts += [prompt.dot_signal, prompt.end_signal]
    text = torch.cat(parts)
    padding = prompt.pad_signal.expand(len(clip.positional_embedding) - len(text), -1)
    x = (torch.cat([text, padding]) + clip.positional_embedding)[None]
    for block in clip.transformer.resblocks:
        x = block(x, attn_mask=clip.attn_mask)
    return F.normalize(clip.ln_final(x[0, len(text) - 1]) @ clip.text_projection, dim=-1)


def encode(clip, prompt, names):
    ids, lengths = pack_names(names, 3 + 3 + 1 + 4, 24)
    return encode_with_beginning(
        clip, prompt.beginning(clip.token_embedding(WORDS)), prompt.endings(clip.token_embedding(ids), lengths), lengths + 1
    )


def test_the_shared_beginning_changes_nothing(clip, prompt):
    """Values, and gradients of both prompts through the frozen tower."""
    ours, expected = encode(clip, prompt, NAMES), torch.stack([whole_text(clip, prompt, name) for name in NAMES])
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    upstream, inputs = torch.randn_like(ours), [prompt.class_prompt, prompt.task_prompt]
    pairs = zip(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(expected, inputs, upstream))
    for one, other in pairs:
        assert other.any()
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_class_alone_is_a_class_among_others(clip, prompt):
    torch.testing.assert_close(encode(clip, prompt, NAMES[1:2])[0], encode(clip, prompt, NAMES)[1], atol=1e-6, rtol=0)


def test_lengths():
    """Task words and task prompt stand before the start, 77 tokens leave 45 for a name (46 with the shorter instance task)."""
    prompt = LearnedPrompt(8)
    beginning = {task: len(prompt.beginning(torch.zeros(len(tokens), 8))) for task, tokens in TASK_TOKENS.items()}
    assert beginning == {"semantic": 30, "instance": 29, "panoptic": 30}
    ids, lengths = pack_names([[1] * 45, [2]], 30, 77)
    assert ids.shape == (2, 47) and lengths.tolist() == [45, 1]
    assert len(LearnedPrompt(8, task_length=0).beginning(torch.zeros(5, 8))) == 17
    with pytest.raises(ValueError, match="the name of class 1 .from 0. has 46 tokens; at most 45 fit"):
        pack_names([[1], [1] * 46], 30, 77)
    with pytest.raises(ValueError, match="class 0 has an empty name"):
        pack_names([[]], 30, 77)


def test_too_long_for_the_tower(clip):
    with pytest.raises(ValueError, match="texts of 26 tokens; this CLIP reads 24"):
        encode_with_beginning(clip, torch.zeros(20, 48), torch.zeros(1, 6, 48), torch.tensor([5]))


def test_fixed_tokens_come_from_the_word_embedding():
    prompt = LearnedPrompt(2)
    table = torch.arange(2 * 49408.0).view(-1, 2)
    prompt.take_signals(table)
    assert prompt.start_signal.tolist() == [[2 * 49406.0, 2 * 49406.0 + 1]] and prompt.end_signal[0, 0] == 2 * 49407
    assert prompt.dot_signal[0, 0] == 2 * 269 and prompt.pad_signal[0, 1] == 1


def test_task_words_are_those_of_clips_tokenizer():
    pytest.importorskip("ftfy")
    from ofaseg.clip_bpe import ClipTokenizer, find_merges

    tokenizer = ClipTokenizer(find_merges(""))
    for task, text in TASK_TEXTS.items():
        ids, mask = tokenizer([text], 20)
        assert tuple(ids[0, 1 : int(mask.sum()) - 1].tolist()) == TASK_TOKENS[task]


def test_the_version_changes_with_the_prompts(prompt):
    before = prompt.version()
    assert prompt.version() == before
    with torch.no_grad():
        prompt.task_prompt.add_(1)
    assert prompt.version() != before
