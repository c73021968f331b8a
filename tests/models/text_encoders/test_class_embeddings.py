"""Class vectors against one text at a time."""

import pytest
import torch

from ofaseg.models.text_encoders import class_embeddings as module
from ofaseg.models.text_encoders.class_embeddings import class_embeddings, padded

PAD = 0


@pytest.fixture
def encode():
    """A text encoder that cares for the order of words and hides padding; it notes the shapes it was called with."""
    table = torch.randn(50, 6)

    def call(ids, mask):
        call.shapes.append(tuple(ids.shape))
        places = torch.linspace(1, 2, 64)[: ids.shape[1], None]
        vectors = ((table[ids] * places).sin() * mask[..., None]).sum(1)
        return vectors / vectors.norm(dim=1, keepdim=True)

    call.shapes = []
    return call


def random_prompts(counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = [[int(torch.randint(2, 12, (), generator=generator)) for _ in range(count)] for count in counts]
    return [[torch.randint(1, 50, (length,), generator=generator).tolist() for length in of_class] for of_class in lengths]


def one_by_one(encode, prompts, length=None):
    rows = []
    for texts in prompts:
        vectors = []
        for ids in texts:
            row = torch.tensor([ids + [PAD] * ((length or len(ids)) - len(ids))])
            vectors.append(encode(row, (torch.arange(row.shape[1]) < len(ids)).long()[None])[0].double())
        mean = torch.stack(vectors).mean(0)
        rows.append(mean / mean.norm())
    return torch.stack(rows).float()


@pytest.mark.parametrize("chunk", [1, 13, 40, 8192])
@pytest.mark.parametrize("length", [None, 25])
def test_equals_one_text_at_a_time(encode, monkeypatch, chunk, length):
    """Classes in their order, however many prompts each has; sorting, chunks and the length of padding change nothing."""
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    prompts = random_prompts((3, 1, 7, 2, 3))
    found = class_embeddings(encode, prompts, PAD, "cpu")
    torch.testing.assert_close(found, one_by_one(encode, prompts, length), atol=1e-6, rtol=1e-5)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("chunk", [1, 13, 40, 8192])
def test_chunks_keep_the_limit_and_the_number_of_texts(encode, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    class_embeddings(encode, random_prompts((3, 1, 7, 2, 3)), PAD, "cpu")
    assert sum(rows for rows, _ in encode.shapes) == 16
    assert all(rows * length <= chunk or rows == 1 for rows, length in encode.shapes)
    assert len(encode.shapes) == (16 if chunk == 1 else 1) or chunk in (13, 40)


def test_another_order_of_classes_is_another_order_of_rows(encode):
    prompts = random_prompts((2, 4, 3))
    found = class_embeddings(encode, prompts, PAD, "cpu")
    torch.testing.assert_close(class_embeddings(encode, prompts[::-1], PAD, "cpu"), found.flip(0))


def test_a_class_without_prompt_is_named(encode):
    with pytest.raises(ValueError, match="class 1 has no prompt; give at least one template"):
        class_embeddings(encode, [[[1, 2]], [], [[3]]], PAD, "cpu")


def test_padded():
    ids, mask = padded([[5, 6, 7], [8]], 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
