"""Rows gathered over processes: values, and the gradient that the whole batch on one process would have."""

import pytest
import torch

from ofaseg import distributed
from tests.integration.forked import shared_server


def test_one_process_needs_no_gathering():
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather_rows(rows) is rows
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


@pytest.mark.slow
def test_two_processes():
    """Rank r wants (r + 1) times weights 1, 2, 3 ... of the gathered rows: each row gets what both want, 3 times its weight."""
    everything, gradients = shared_server().call("tests.integration.pair_jobs:gathered", 3, nproc=2).check().value
    own = torch.arange(6.0).view(3, 2)
    assert torch.equal(torch.tensor(everything), torch.cat([own, own + 100]))
    assert torch.equal(torch.tensor(gradients), 3 * torch.arange(1.0, 13.0).view(2, 3, 2))
