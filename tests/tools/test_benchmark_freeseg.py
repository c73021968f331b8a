"""The benchmark of FreeSeg: the plain procedure trains and predicts as ours does, a difference is noticed, every row is there."""

import pytest
import torch

pytest.importorskip("open_clip")

from tools import benchmark_freeseg  # noqa: E402
from tools.benchmark_freeseg import Bench  # noqa: E402
from tools.benchmark_simseg import table  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    small = dict(SIDE=64, PHOTO=(96, 64), TRAINED=7, TESTED=8, MASKS=4, MAPS=4, PLAIN_MAPS=2, MAP_SIZE=(30, 40), SEGMENTS=5)
    for name, value in small.items():
        monkeypatch.setattr(benchmark_freeseg, name, value)


def test_both_paths_train_alike():
    bench = Bench("freeseg_nano")
    bench.set_classes(benchmark_freeseg.TRAINED)
    losses = {path: bench.losses(path) for path in ("ours", "plain")}
    assert len(losses["plain"]) == 3 * 3 and losses["ours"].keys() == losses["plain"].keys()  # of four outputs, one is left out
    bench.compare_training()
    for path in ("ours", "plain"):
        before = bench.model.predictor.query_features.detach().clone()
        bench.step(path)
        assert not torch.equal(bench.model.predictor.query_features, before), path


def test_both_paths_predict_alike():
    bench = Bench("freeseg_nano")
    bench.set_classes(benchmark_freeseg.TESTED)
    bench.compare_predictions()
    found = bench.predict("plain")
    assert len(found["instance"][1]) > 3 and len(set(found["panoptic"].flatten().tolist())) > 3


@pytest.mark.parametrize("work", ["training", "predictions"])
def test_disagreement_is_an_error(monkeypatch, work):
    """Of a plain procedure that leaves texts out of the pixels."""
    bench = Bench("freeseg_nano")
    bench.set_classes(benchmark_freeseg.TESTED)
    monkeypatch.setattr(benchmark_freeseg.reference, "interaction", lambda model, maps, text: maps)
    with pytest.raises(AssertionError):
        getattr(bench, f"compare_{work}")()


@pytest.mark.slow
def test_rows(monkeypatch):
    monkeypatch.setattr(benchmark_freeseg, "CLIPS", {"nano": {}})
    rows = benchmark_freeseg.answer({"arch": "freeseg_nano", "repeats": 1})
    assert len({row["work"] for row in rows}) == 4 and all(row["seconds"] > 0 for row in rows)
    assert sum("plain" in line for line in table(rows)) == 2
    assert all(1 <= int(row["note"].split()[2]) <= 60 for row in rows if "photo of" in row["work"])
