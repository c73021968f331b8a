"""Bucket tables against the published check values; positions of any grid; mean embeddings."""

import pytest
import torch

from ofaseg.models.ofa import embeddings
from tests.models.ofa import lookup

TOKEN_BUCKETS = {
    (0, 0): 255,
    (127, 0): 382,
    (128, 0): 383,
    (129, 0): 384,
    (130, 0): 384,
    (140, 0): 389,
    (300, 0): 436,
    (1023, 0): 510,
    (0, 1023): 0,
}
IMAGE_BUCKETS = {(1, 1): 3444, (1, 2): 3443, (2, 1): 3445, (43, 1): 3527, (0, 1): 6889, (1, 0): 6890, (0, 0): 6891}


@pytest.mark.parametrize("pair, bucket", TOKEN_BUCKETS.items())
def test_token_buckets_of_the_published_table(pair, bucket):
    assert embeddings.token_bucket(torch.tensor(pair[0] - pair[1]), 256).item() == bucket


@pytest.mark.parametrize("pair, bucket", IMAGE_BUCKETS.items())
def test_image_buckets_of_the_published_table(pair, bucket):
    query, key = torch.tensor(pair)
    assert lookup.image_bucket(query, key, 42).item() == bucket


def test_grid_positions():
    table = torch.arange(26.0)[:, None].expand(-1, 2)  # row i holds i
    square = embeddings.grid_positions(table, (4, 4), 4, 5)
    assert square[:, 0].tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19]
    assert embeddings.grid_positions(table, (2, 3), 4, 5, direct=True)[:, 0].tolist() == [1, 2, 3, 6, 7, 8]
    wide = embeddings.grid_positions(table, (4, 8), 4, 5)[:, 0].view(4, 8)
    torch.testing.assert_close(wide[0], torch.tensor([1, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4]))
    torch.testing.assert_close(wide[:, 0], torch.tensor([1.0, 6, 11, 16]))


def test_mean_embeddings_leave_padding_out():
    weight = torch.randn(6, 4)
    tokens = embeddings.pad_token_lists([[2, 3, 4], [5]], pad=1)
    torch.testing.assert_close(embeddings.mean_embeddings(weight, tokens, 1), torch.stack([weight[2:5].mean(0), weight[5]]))


@pytest.mark.parametrize("lists", [[], [[4], []]])
def test_empty_class_lists(lists):
    with pytest.raises(ValueError, match="class"):
        embeddings.pad_token_lists(lists, pad=1)
