"""The dense-CRF benchmark runs and says what it measured. Nothing is timed here."""

import re

import numpy as np
from PIL import Image

from tools import benchmark_crf


def test_the_table_has_every_run_for_every_number_of_threads(capsys, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    assert benchmark_crf.main(["--image", str(tmp_path / "photo.png"), "--size", "40", "--repeats", "2", "--threads", "1,2"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [cells[1] for cells in rows if cells[0] == "dense_crf, 5 masks"] == ["1", "2"]
    assert all(re.fullmatch(r"\d+\.\d", cell) for cells in rows[2:] for cell in cells[2:4])


def test_the_gain_is_the_other_s_time_by_ours():
    times = {"dense_crf, 1 mask": [0.010, 0.020, 0.030], "pydensecrf, 1 mask": [0.060, 0.060, 0.040]}
    assert benchmark_crf.table(1, times).splitlines()[0] == "| dense_crf, 1 mask | 1 | 20.0 | 10.0 | 3.0 (4.0) |"


def test_maps_fill_0_to_1_in_blocks():
    maps = benchmark_crf.bench_maps(40)
    assert maps.shape == (5, 40, 40) and maps.amin((1, 2)).eq(0).all() and maps.amax((1, 2)).eq(1).all()
    assert (maps[:, :16, :16] == maps[:, :1, :1]).all()
    assert benchmark_crf.bench_image(40).shape == (40, 40, 3)
