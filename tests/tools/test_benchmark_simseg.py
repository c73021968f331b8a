"""Both procedures of the SimSeg benchmark give the same label maps: ours in batches, the plain one photo by photo. Nothing is timed."""

import numpy as np
import pytest
import torch

from ofaseg.evaluation.dense_crf import binary_crf
from tools import benchmark_simseg
from tools.benchmark_simseg import Bench


@pytest.fixture(scope="module")
def bench():
    patch = pytest.MonkeyPatch()
    patch.setattr(benchmark_simseg, "SIDE", 96)
    patch.setattr(benchmark_simseg, "VOCABULARY", 1200)
    patch.setattr(benchmark_simseg, "pydensecrf_binary", binary_crf)  # the compiled package has its own comparison with ours
    patch.setattr(benchmark_simseg, "data_pack", lambda: None)
    yield Bench("simseg_nano", 21, 3)
    patch.undo()


def test_both_procedures_agree(bench):
    ours, plain = bench.ours(), bench.plain()
    assert bench.crf_calls > 0 and any(label_map.any() for label_map in plain)
    for a, b, photo in zip(ours, plain, bench.photos):
        assert a.shape == photo.shape[:2]
        assert np.mean(a != b) < 1e-3


def test_decoupled_step_is_the_whole_step(bench):
    start = {name: value.clone() for name, value in bench.model.state_dict().items()}
    ends = []
    for sub_batch in (0, 3):
        bench.model.load_state_dict(start)
        bench.model.text_encoder.eval()
        for module in bench.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        bench.training(8, sub_batch)()
        ends.append(bench.model.image_projection.weight.detach().clone())
    assert not torch.equal(ends[0], start["image_projection.weight"])
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=2e-7)
    bench.model.load_state_dict(start)


def test_class_vectors_agree(bench):
    ours, plain = bench.class_texts()
    torch.testing.assert_close(ours(), plain(), rtol=0, atol=1e-5)
    torch.testing.assert_close(bench.model.class_embeddings(), bench.vectors)


def test_rows_of_subclasses():
    rows = benchmark_simseg.fusion_rows(1, classes=3, names=2)
    assert [row["path"] for row in rows] == ["class names", "softmax", "mean", "superclass_mean", "max", "logsumexp"]
    assert all(row["seconds"] > 0 for row in rows)


def test_rows_of_whole_tiles(bench):
    rows = benchmark_simseg.tile_rows("simseg_nano", 1)
    assert [row["work"].split(", ")[-1] for row in rows[::2]] == [f"{n} tokens" for n in (197, 257, 325, 362, 401)]
    rows += benchmark_simseg.attention_rows(1, (77,))
    assert [row["path"] for row in rows[-4:]] == ["as they are", "filled", "as they are", "filled up to 80"]
    assert all(row["seconds"] > 0 and row["note"].startswith("least ") for row in rows)


def test_parts_are_chosen_by_name():
    rows = benchmark_simseg.answer({"parts": ["fusion"], "repeats": 1})
    assert {row["work"] for row in rows} == {"class maps, 81 classes with 5 subclasses"}
    with pytest.raises(ValueError, match="unknown parts traning; there are evaluation, training"):
        benchmark_simseg.answer({"parts": ["traning"]})
