"""`ofaseg report` over evaluations and logs."""

import pytest

from ofaseg.cli import build_parser, main
from ofaseg.evaluation.report import read_scores

LOG = '{"epoch": 1, "update": 0.5, "loss": "2.5", "num_updates": "5"}\n{"epoch": 1, "valid_mIoU": "0.25", "valid_num_updates": "10"}\n'


@pytest.fixture
def run_dir(toy, tmp_path):
    run = tmp_path / "run"
    for name, more in (("adapted", []), ("before", ["--resnet-iters", "9"])):
        assert (
            main(["evaluate", "model.pt", str(toy), "--device", "cpu", "--out", str(run / name), "--name", name, "--examples", "2", *more])
            == 0
        )
    (run / "train.log").write_text(LOG)
    (run / "other.log").write_text("no records\n")
    return run


def test_page_tables_and_charts(run_dir, capsys):
    (run_dir / "notes.txt").write_text("Written in a file.")
    assert main(["report", str(run_dir), "--title", "My run", "--notes", str(run_dir / "notes.txt")]) == 0
    page = (run_dir / "report.html").read_text()
    assert "<title>My run</title>" in page and "Written in a file." in page
    assert page.count("<img") == 2 * 4 and page.count("<svg") == 3
    printed = capsys.readouterr().out
    for name in ("results.md", "iou_per_class.svg", "curve_loss.svg", "curve_miou.svg"):
        assert name in printed and (run_dir / name).is_file()
    assert "| before |" in (run_dir / "results.md").read_text()


def test_chosen_results_keep_their_order_and_names(run_dir):
    out = run_dir / "page" / "x.html"
    assert (
        main(
            [
                "report",
                str(run_dir),
                "--result",
                f"second run={run_dir / 'before'}",
                "--log",
                f"l={run_dir / 'train.log'}",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    page = out.read_text()
    assert "second run" in page and "adapted" not in page


def test_a_pattern_gathers_the_seeds_of_a_result(run_dir, toy):
    second = ["evaluate", "model.pt", str(toy), "--device", "cpu", "--out", str(run_dir / "adapted2"), "--examples", "0"]
    assert main([*second, "--resnet-iters", "9"]) == 0
    assert main(["report", str(run_dir), "--result", f"seeds={run_dir}/adapted*", "--log", f"l={run_dir}/tr*.log"]) == 0
    values = [read_scores(run_dir / name / "scores.json")["mIoU"] for name in ("adapted", "adapted2")]
    cell = f"{50 * sum(values):.1f} ± {100 * abs(values[0] - values[1]) / 2**0.5:.1f}"
    assert f"| seeds (2 runs) | {cell} |" in (run_dir / "results.md").read_text()
    assert cell in (run_dir / "report.html").read_text()


def test_errors(run_dir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments in ([str(tmp_path / "absent")], [str(tmp_path / "empty")], [str(run_dir), "--result", "a=b"]):
        assert main(["report", *arguments]) == 2
    errors = capsys.readouterr().err
    assert "no such folder" in errors and "neither scores.json" in errors and "does not exist" in errors


def test_every_command_explains_itself(capsys):
    for command in ("evaluate", "predict", "report"):
        with pytest.raises(SystemExit) as exit_status:
            build_parser().parse_args([command, "--help"])
        assert exit_status.value.code == 0 and "--debug" in capsys.readouterr().out
