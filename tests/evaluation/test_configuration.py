"""The configuration in a training log: read without running it, and shown with what differs between runs."""

from ofaseg.evaluation.configuration import configuration_section, read_logged_configuration
from ofaseg.evaluation.training_log import read_training_log

LINE = (
    "2026-01-01 00:00:00 | INFO | fairseq_cli.train | {'_name': None, 'common': {'_name': None, 'seed': 3, 'fp16': False}, "
    "'task': {'_name': 'seq2seq_segmentation', 'data': 'my <shards>', 'autocast': bf16, 'supervised': True}, "
    "'model': {'_name': 'segofa_nano', 'decoder_input_type': encoder_output}, 'bmuf': {'x': 1}, "
    "'optimization': {'lr': [0.001], 'max_epoch': -1, 'stop': __import__('os').system('touch ran')}, 'criterion': None}"
)


def test_the_line_is_parsed_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    groups = read_logged_configuration(LINE)
    assert groups["common"]["seed"] == 3 and groups["task"]["autocast"] == "bf16" and groups["task"]["supervised"] is True
    assert groups["optimization"]["lr"] == [0.001] and groups["optimization"]["max_epoch"] == "-1"
    assert "criterion" not in groups and "system" in groups["optimization"]["stop"] and not (tmp_path / "ran").exists()


def test_other_and_damaged_lines_hold_none():
    for line in ("", "{'task'}", '{"epoch": 1, "task": 2}', LINE[:-40], "{'_name': 'task'", "{'_name': 'task'}.get('task')"):
        assert read_logged_configuration(line) is None


def test_a_log_keeps_it_beside_its_curves(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINE + '\n{"epoch": 1, "loss": "2.5", "num_updates": "5"}\n')
    log = read_training_log(tmp_path / "train.jsonl")
    assert log.configuration["model"]["_name"] == "segofa_nano" and log.curves["train_loss"] == [(5, 2.5)]


def test_runs_that_differ_show_every_value():
    first = read_logged_configuration(LINE)
    second = first | {"common": first["common"] | {"seed": 4}}
    section = configuration_section([("a", first), ("b", second), ("no log", {})])
    assert "<dt>seed</dt><dd>3 | 4</dd>" in section and "2 runs" in section
    assert "<dt>training data</dt><dd>my &lt;shards&gt;</dd>" in section and "<dt>architecture</dt><dd>segofa_nano</dd>" in section
    assert "<td>decoder_input_type</td><td>encoder_output</td>" in section and "bmuf" not in section
    assert configuration_section([("no log", {})]) == ""
