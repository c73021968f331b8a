"""Score files, Markdown tables and fairseq's JSON log lines."""

import json
import math

import pytest
import torch

from ofaseg.evaluation import report
from ofaseg.evaluation.semantic import best_constant_prediction, semantic_scores
from ofaseg.evaluation.training_log import read_training_log
from ofaseg.vocabulary import ClassVocabulary

VOCABULARY = ClassVocabulary(names=("a|b", "c", "d"), thing=(True, False, False))
MATRIX = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])


def scores():
    found = semantic_scores(MATRIX, VOCABULARY) | {"images": 2}
    found["constant"] = best_constant_prediction(MATRIX, VOCABULARY)
    return found


def test_json_is_strict_and_reads_back(tmp_path):
    report.write_json(tmp_path / "x" / "scores.json", scores())
    data = json.loads((tmp_path / "x" / "scores.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert data["IoU_per_class"] == [0.75, 0.8, None]
    assert report.read_scores(tmp_path / "x" / "scores.json") == data


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_file_without_scores_is_an_error(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ValueError, match="scores.json.*ofaseg evaluate"):
        report.read_scores(tmp_path / "scores.json")


def test_markdown_table_has_percentages_and_only_filled_columns():
    table = report.markdown_table(report.with_constant("mine", scores())).splitlines()
    assert table[0] == "| | mIoU | objects | backgrounds | mAcc | aAcc | fwIoU | images |"
    assert table[2].startswith("| mine | 77.5 | 75.0 | 80.0 | 87.5 | 87.5 |") and table[2].endswith("| 2 |")
    assert table[3].startswith("| best constant prediction (a\\|b) | 25.0 |")
    assert report.markdown_table([("mine", scores())], header=False).splitlines() == [table[2]]


def test_class_table_and_undefined_values():
    rows = report.class_table(scores()).splitlines()
    assert rows[2] == "| a\\|b | 75.0 | 75.0 | 50.0 |" and rows[4] == "| d | – | – | 0.0 |"
    assert report.percent(None) == report.percent(math.nan) == "–"


def test_runs_of_one_result_become_mean_and_deviation():
    first, second = scores(), scores()
    second["mIoU"], second["IoU_per_class"] = 0.875, [0.85, 0.9, None]
    first["IoU_per_class"][2] = None
    merged = report.mean_over_runs([first, second])
    assert merged["mIoU"] == pytest.approx(0.825) and merged["spread"]["mIoU"] == pytest.approx(0.1 / math.sqrt(2))
    assert merged["IoU_per_class"] == [pytest.approx(0.8), pytest.approx(0.85), None]
    row = report.markdown_table([("mine", merged)]).splitlines()[2]
    assert row.startswith("| mine (2 runs) | 82.5 ± 7.1 | 75.0 ± 0.0 |")
    assert report.mean_over_runs([first]) is first
    for runs in ([first | {"mAcc": None}, second], [first, second | {"mAcc": None}]):  # undefined in one, undefined in the mean
        assert report.mean_over_runs(runs)["mAcc"] is None
    with pytest.raises(ValueError, match="share images"):
        report.mean_over_runs([first, second | {"images": 3}])


LOG = """2026-01-01 00:00:00 | INFO | fairseq.tasks | {"not": "a record"}
2026-01-01 00:00:00 | INFO | train_inner | {"epoch": 1, "update": 0.5, "loss": "2.5", "wps": "10", "num_updates": "5", "lr": "0.1"}
{"epoch": 1, "train_loss": "2.0", "train_num_updates": "10", "train_wall": "3"}
{"epoch": 1, "valid_loss": "1.5", "valid_mIoU": "0.25", "valid_num_updates": "10", "valid_best_mIoU": "0.25"}
begin training {
{"epoch": 2, "update": 1.5, "loss": "9.9", "num_updates": "15"}
{"epoch": 2, "update": 1.5, "loss": "1.0", "num_updates": "15"}
{"epoch": 2, "update": 1.8, "loss": "nan", "num_updates": "18"}
{"epoch": 2, "val_mIoU": "0.5", "val_num_updates": "20", "val_best_mIoU": "0.5", "val_wps": "9"}
{"epoch": 2, "test_mIoU": 0.4, "test_num_updates": "20"}
{"epoch": 2, "valid_loss": "1.2", "valid_mIoU": "0.31", "valid_num
"""


def test_training_curves_from_log_lines(tmp_path):
    path = tmp_path / "adapt.log"
    path.write_text(LOG)
    log = read_training_log(path)
    assert log.name == "adapt" and log
    assert log.curves["train_loss"] == [(5, 2.5), (10, 2.0), (15, 1.0)]
    assert log.curves["valid_mIoU"] == [(10, 0.25), (20, 0.5)] and log.curves["valid_loss"] == [(10, 1.5)]
    assert set(log.curves) == {"train_loss", "train_lr", "valid_loss", "valid_mIoU", "test_mIoU"}
    path.write_text("nothing here\n")
    assert not read_training_log(path)


def test_tables_of_segments_and_objects(tmp_path):
    """One table per kind of score; a row stands only where it has the kind."""
    segments = {"PQ": 0.5, "SQ": 0.8, "RQ": 0.6, "thing_PQ": 0.25, "PQ_per_class": [0.25, None], "class_names": ["a", "b"], "images": 3}
    objects = {"AP": 0.125, "AP50": 0.5, "images": 3}
    table = report.markdown_table([("both", segments | objects), ("objects", objects)]).splitlines()
    assert (
        table[0] == "| | PQ | SQ | RQ | objects PQ | images |" and table[2] == "| both | 50.0 | 80.0 | 60.0 | 25.0 | 3 |" and not table[3]
    )
    assert table[4] == "| | AP | AP50 | images |" and len(table) == 8 and table[7] == "| objects | 12.5 | 50.0 | 3 |"
    assert report.class_table(segments).splitlines() == ["| class | PQ |", "|---|---:|", "| a | 25.0 |", "| b | – |"]
    merged = report.mean_over_runs([segments, segments | {"PQ": 0.7, "PQ_per_class": [0.75, None]}])
    assert merged["PQ"] == 0.6 and merged["PQ_per_class"] == [0.5, None] and merged["spread"]["PQ"] > 0.1
    report.write_json(tmp_path / "scores.json", segments)
    assert report.read_scores(tmp_path / "scores.json")["PQ"] == 0.5
    report.write_json(tmp_path / "scores.json", {"images": 3})
    with pytest.raises(ValueError, match="holds no mIoU or PQ or AP"):
        report.read_scores(tmp_path / "scores.json")
