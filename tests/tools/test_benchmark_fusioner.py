"""The benchmark of Fusioner: both paths train alike, every row is there."""

import pytest
import torch

from tools import benchmark_fusioner
from tools.benchmark_fusioner import Bench
from tools.benchmark_simseg import table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(benchmark_fusioner, "PHOTO", (40, 50))
    monkeypatch.setattr(benchmark_fusioner, "TEMPLATES", 2)


def test_both_paths_train_alike():
    """With plain gradient descent: Adam makes steps of rounding noise where a gradient is zero."""
    benches = [Bench("fusioner_nano") for _ in range(2)]
    for bench in benches:
        bench.optimizer = torch.optim.SGD([p for p in bench.model.parameters() if p.requires_grad], lr=1.0)
    benches[0].training()()
    benches[1].plain_training()
    for (name, ours), plain in zip(benches[0].model.named_parameters(), benches[1].model.parameters()):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=0, msg=name)
    start = Bench("fusioner_nano").model.fusion.proj_patch
    assert not torch.allclose(benches[0].model.fusion.proj_patch, start, atol=1e-4)


@pytest.mark.slow
def test_rows():
    rows = benchmark_fusioner.answer({"archs": ["fusioner_nano"], "repeats": 1})
    assert len({row["work"] for row in rows}) == 4 and all(row["seconds"] > 0 for row in rows)
    assert sum("plain" in line for line in table(rows)) == 4
