"""The text tower: padding is hidden, and every parameter learns."""

import pytest
import torch

from ofaseg.models.text_encoders.bert import BertTokens

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    return BertTokens("bert_nano", vocab_size=90, dropout=0.1).eval()


def texts(lengths, width):
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in zip(ids, lengths):
        row[:length] = torch.randint(5, 90, (length,))
    return ids, (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()


@torch.no_grad()
def test_words_are_the_same_with_padding_cut_or_not_and_alone_or_not(bert):
    lengths = (7, 3, 2)
    ids, mask = texts(lengths, 25)
    whole, cut = bert(ids, mask), bert(ids[:, :7], mask[:, :7])
    for b, length in enumerate(lengths):
        torch.testing.assert_close(cut[b, :length], whole[b, :length], atol=2e-6, rtol=1e-5)
        alone = bert(ids[b : b + 1, :length], mask[b : b + 1, :length])
        torch.testing.assert_close(alone[0], whole[b, :length], atol=2e-6, rtol=1e-5)
    other = ids.masked_fill(mask == 0, 77)
    torch.testing.assert_close(bert(other, mask)[0, :7], whole[0, :7], atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_equals_transformers_with_an_ordinary_mask(bert):
    ids, mask = texts((6, 4), 9)
    expected = bert.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(bert(ids, mask)[mask.bool()], expected[mask.bool()], atol=2e-6, rtol=1e-5)


def test_sizes_and_gradients(bert):
    assert (bert.dim, bert.vocab_size, bert.max_length) == (128, 90, 64)
    ids, mask = texts((5, 3), 8)
    bert(ids, mask).square().sum().backward()
    assert all(parameter.grad is not None for parameter in bert.parameters())
    assert not any("pooler" in name for name, _ in bert.named_parameters())
    bert.zero_grad()
