"""The benchmark of many names runs and compares with its first row. No time is checked here."""

import json
import re

from tools import benchmark_names


def test_the_table_compares_with_the_first_row():
    results = [
        {"names": 150, "forward": [0.1, 0.3, 0.2], "classes": [0.1, 0.1, 0.1], "peak": 400.0},
        {"names": 10000, "forward": [0.3], "classes": [0.15], "peak": 500.0},
    ]
    assert benchmark_names.table(results).splitlines()[2:] == [
        "| 150 | 200 | 100 | 300 | x 1.00 | 400 | x 1.00 |", "| 10,000 | 300 | 150 | 450 | x 1.50 | 500 | x 1.25 |",
    ]  # fmt: skip


def test_a_measurement(capsys):
    request = {"names": 600, "size": 32, "architecture": "simseg_nano", "repeats": 2, "threads": 1, "device": "cpu"}
    assert benchmark_names.main(["--request", json.dumps(request)]) == 0
    found = json.loads(re.findall(r"^\{.*\}$", capsys.readouterr().out, re.MULTILINE)[-1])
    assert len(found["forward"]) == len(found["classes"]) == 2 and min(found["forward"] + found["classes"]) > 0 and found["peak"] > 50
