"""The benchmark of panoptic quality runs and says what it measured; both ways of counting agree. Nothing is timed here."""

import re

import numpy as np

from ofaseg.evaluation.panoptic import panoptic_counts
from tests.evaluation.naive_panoptic import naive_counts
from tools import benchmark_panoptic


def test_the_table_has_every_way_for_every_number_of_processes(capsys):
    options = ["--maps", "5", "--size", "30x40", "--segments", "6", "--processes", "1,2", "--plain-maps", "3"]
    assert benchmark_panoptic.main(options) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")][2:]
    assert [row[:3] for row in rows] == [[name, n, maps] for n in "12" for name, maps in zip(benchmark_panoptic.COUNTERS, "5353")]
    assert all(re.fullmatch(r"\d+\.\d+", row[4]) for row in rows)
    assert float(re.search(r"difference between the two counts: (\S+)", out)[1]) < 1e-9


def test_processes_share_the_maps():
    pairs = [benchmark_panoptic.draw_pair(seed, 30, 40, 6) for seed in range(3)]
    expected = sum(panoptic_counts(*pairs[i % 3], benchmark_panoptic.NUM_CLASSES) for i in range(7))
    for name in benchmark_panoptic.COUNTERS:
        for processes in (1, 2):
            np.testing.assert_allclose(benchmark_panoptic.measure(name, pairs, 7, processes)[1], expected)


def test_the_plain_procedure_counts_as_the_definition():
    for seed in range(10):
        pair = benchmark_panoptic.draw_pair(seed, 30, 40, 9)
        np.testing.assert_allclose(benchmark_panoptic.plain_counts(*pair, 133), naive_counts(*pair, 133))
        assert {0, 1} <= {int(s["is_crowd"]) for s in pair[1]} and (pair[0] == 0).any()
