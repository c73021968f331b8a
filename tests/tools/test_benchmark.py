"""The benchmark compares like with like: its eager reference computes what our model computes. Nothing is timed here."""

import json

import pytest
import torch

from ofaseg.data import codec
from tools import benchmark, benchmark_cases, benchmark_data, benchmark_measure, benchmark_readers
from tools.benchmark_cases import Bench, Setup
from tools.benchmark_reference import all_pixels, bag_inputs, grid_buckets, resize_axis, token_buckets

SMALL = Setup("segofa_nano", 48, 2, 5, 64)


@pytest.fixture(scope="module")
def bench():
    return Bench(SMALL, patch_image_size=48, orig_patch_image_size=48)


@pytest.mark.parametrize("case", list(benchmark_cases.CASES))
def test_paths_agree(bench, case, monkeypatch):
    """Logits, losses, gradient norms within 1e-4 and label maps but for ties; a photo has another grid than training."""
    monkeypatch.setattr(benchmark_cases, "NATIVE_SIZE", (60, 90))
    errors = bench.check(case)
    assert errors and max(errors.values()) < 1e-3


def test_disagreement_is_an_error(bench, monkeypatch):
    weight = bench.reference.weights["encoder.image_rel_pos_table_list.1.weight"]
    monkeypatch.setitem(bench.reference.weights, "encoder.image_rel_pos_table_list.1.weight", (2 * weight).detach().requires_grad_())
    with pytest.raises(AssertionError, match="the paths differ in"):
        bench.check("step")


def test_every_path_runs_and_trains(bench):
    for path in benchmark_cases.CASES["step"]:
        before = bench.reference.weights["encoder.layers.0.fc1.weight"].detach().clone()
        bench.runner("step", path)()
        assert not torch.equal(before, bench.reference.weights["encoder.layers.0.fc1.weight"]), path


def test_other_configurations_are_refused():
    with pytest.raises(ValueError, match="published configuration"):
        Bench(SMALL, full_context_alignment=True).runner("step", "reference")


def test_token_lists_have_the_published_lengths():
    assert [len(benchmark_cases.source_text(benchmark_cases.class_tokens(k))) for k in (15, 150)] == [36, 215]


def test_bags_hold_the_pieces_of_every_cell():
    ids, ends = bag_inputs(torch.tensor([[[0, 1]], [[1, 1]]]), [[7], [8, 9]])
    assert ids.tolist() == [[7, 8, 9, 1], [8, 9, 8, 9]]
    assert ends.tolist() == [[1, 3], [2, 4]]


def test_buckets_of_the_published_tables():
    text = token_buckets(256, 1024)
    pairs = {(0, 0): 255, (127, 0): 382, (128, 0): 383, (129, 0): 384, (140, 0): 389, (300, 0): 436, (1023, 0): 510, (0, 1023): 0}
    assert {pair: int(text[pair]) for pair in pairs} == pairs
    image = grid_buckets(42)
    pairs = {(1, 1): 3444, (1, 2): 3443, (2, 1): 3445, (43, 1): 3527, (0, 1): 6889, (1, 0): 6890, (0, 0): 6891}
    assert {pair: int(image[pair]) for pair in pairs} == pairs


def test_resizing_to_the_same_grid_changes_nothing():
    bias = torch.randn(2, 10, 10)
    assert torch.allclose(resize_axis(resize_axis(bias, 1, 3, (3, 3)), 2, 3, (3, 3)), bias)


def test_last_position_survives_upsampling():
    scores = all_pixels(torch.arange(10.0).view(1, 5, 2), (2, 2), (4, 4))
    assert scores.shape == (1, 17, 2)
    assert scores[0, -1].tolist() == [8.0, 9.0]


@pytest.fixture
def drawn(monkeypatch):
    """Drawn photos, with or without the real-data pack."""
    monkeypatch.setattr(benchmark_readers, "data_pack", lambda: None)


def test_every_way_delivers_the_same_rows(tmp_path, drawn):
    rows, vocabulary, kind = benchmark_readers.photos(2)
    assert "drawn" in kind and [codec.image_size(row["image"]) for row in rows] == [(480, 640)] * 2
    benchmark_readers.write_shards(tmp_path, rows, vocabulary)
    ways = benchmark_data.ways(tmp_path, vocabulary, 2)
    benchmark_data.check_rows(ways[benchmark_data.PUBLISHED, False], ways["ours: TSV of PNG", False])
    tsv, parquet = (ways[f"ours: {name}", True][1] for name in ("TSV", "Parquet"))
    assert torch.equal(tsv["image"], parquet["image"]) and torch.equal(tsv["label_map"], parquet["label_map"])
    for augment in (False, True):
        plain = ways[benchmark_data.PLAIN, augment][1]
        assert plain["image"].shape == (3, 512, 512) and plain["image"].abs().max() <= 1
        assert set(plain["label_map"].unique().tolist()) <= set(range(-1, len(vocabulary)))
        if ("HF datasets, then plain", augment) in ways:
            other = ways["HF datasets, then plain", augment][1]
            assert torch.equal(plain["image"], other["image"]) and torch.equal(plain["label_map"], other["label_map"])


def test_different_pictures_are_noticed(tmp_path, drawn):
    rows, vocabulary, _ = benchmark_readers.photos(2)
    for name, part in (("a", rows[:1]), ("b", rows[1:])):
        benchmark_readers.write_shards(tmp_path / name, part, vocabulary)
    ours = benchmark_readers.our_rows(tmp_path / "a" / "png-tsv", vocabulary, False)
    other = benchmark_readers.PublishedRows(next((tmp_path / "b" / "png-tsv").glob("*.tsv")), len(vocabulary))
    with pytest.raises(AssertionError, match="different pictures"):
        benchmark_data.check_rows(other, ours)


def test_real_photos_are_used_where_they_are(real_data):
    rows, vocabulary, kind = benchmark_readers.photos(3)
    assert "COCO" in kind and vocabulary.names[0] == "person" and len({row["id"] for row in rows}) == 3
    for row in rows:
        assert codec.decode_image(row["image"]).shape == (480, 640, 3)
        assert codec.decode_label_map(row["label_map"], vocabulary).shape == (480, 640)


@pytest.mark.slow
def test_data_is_measured_and_shown():
    """In a process of its own, as always: data workers must not be forked from one whose thread pools run."""
    request = {"rows": 3, "repeats": 1, "index_rows": 1000, "batches": 2}
    result = benchmark.child("tools.benchmark_data", request, {"HF_HUB_OFFLINE": "1"})
    assert all(rate > 0 for way in result["rates"].values() for rate in way.values())
    assert all(milliseconds >= 0 for milliseconds in result["stages"].values()) and result["index"]["rows"] == 1000
    text = "\n".join(benchmark_data.tables(result))
    assert "photos" in text and "| JPEG |" in text and "two workers are" in text and "1,000 rows" in text


DATA = {
    "photos": "drawn",
    "rates": {benchmark_data.PLAIN: {"plain": 2.0, "augmented": 1.0}, "ours": {"plain": 4.0, "augmented": 5.0}, "other": {"plain": 3.0}},
    "stages": {"JPEG": 1.5, "flip": 0.5},
    "workers": {"ours": {"0": 5.0, "1": 4.0, "2": 7.0}},
    "latency": {"ours": 12.3},
    "index": {"rows": 1000, "bytes": 5_000_000, "read": 0.001, "sweep": 0.002, "build": 0.01, "open": 0.0001},
}


def test_measurements_become_a_table(monkeypatch):
    answer = {"errors": {"loss": 1e-7}, "seconds": {path: [2.0, 1.0, 3.0] for path in benchmark_cases.CASES["step"]}, "gflops": 100.0}
    requests = []

    def child(module, request, environment):
        requests.append(json.loads(json.dumps(request)))
        return answer | {"threads": 1, "torch": "2", "peak": 300.0, "start": 100.0}

    monkeypatch.setattr(benchmark, "child", child)
    result = benchmark.measure("nano", "step", "cpu", "default", 3)
    assert [request["mode"] for request in requests] == ["time", "peak", "peak", "peak"]
    assert result["paths"]["reference"] == {"seconds": 2.0, "peak": 300.0, "start": 100.0}
    assert "reference with display pass" in benchmark.describe(result)
    section = benchmark.section("t", "m", "c", [result], DATA)
    assert "| nano | image-free training step | default | ours | 2 | 200 |" in section
    assert "| ours | 4 | 2.0 | 5 | 5.0 |" in section and "| other | 3 | 1.5 |  |  |" in section
    assert "| JPEG | 1.500 | 75 % |" in section and "two workers are 1.75 times one" in section


def test_measuring_gives_seconds_and_memory(bench):
    result = benchmark_measure.time_paths(bench, "predict", repeats=1, least_seconds=0.0)
    assert all(len(times) == 1 and times[0] > 0 for times in result["seconds"].values()) and result["gflops"] > 0
    result = benchmark_measure.peak_of_path(bench, "predict", "ours")
    assert result["peak"] > result["start"] > 10


def test_a_failing_child_is_named():
    with pytest.raises(benchmark.BenchmarkError, match="No module named .*no_such"):
        benchmark.child("tools.no_such_module", {}, {})


def test_sections_replace_themselves_only(tmp_path):
    path = tmp_path / "docs" / "benchmarks.md"
    benchmark.write_section(path, "a", "old numbers\n")
    benchmark.write_section(path, "b", "other numbers\n")
    benchmark.write_section(path, "a", "new numbers\n")
    text = path.read_text()
    assert text.startswith("# Benchmarks") and "old numbers" not in text
    assert text.index("new numbers") < text.index("other numbers")


@pytest.mark.parametrize("arguments", [["--models", "tinny"], ["--cases", ""], ["--repeats", "0"], ["--allocators", "jemalloc"]])
def test_bad_arguments_say_what_is_allowed(arguments):
    with pytest.raises(SystemExit, match="--"):
        benchmark.parse(arguments)
