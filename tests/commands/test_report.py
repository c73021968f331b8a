"""`ofaseg report` over evaluations and logs."""

import shutil

import pytest

from ofaseg.cli import build_parser, main
from ofaseg.commands.report import shown_photos
from ofaseg.evaluation.confusion import read_matrix
from ofaseg.evaluation.examples import ChosenPhoto, read_index
from ofaseg.evaluation.report import read_scores
from tests.browser import open_page, requires_chromium
from tests.commands.conftest import make_toy

CONFIGURATION = "2026-01-01 | INFO | fairseq_cli.train | {'_name': None, 'common': {'_name': None, 'seed': 1}, "
CONFIGURATION += "'task': {'_name': 'seq2seq_segmentation', 'data': '@DATA@', 'autocast': bf16}, "
CONFIGURATION += "'model': {'_name': 'segofa_tiny'}, 'optimization': {'lr': [0.001]}}\n"
LOG = '{"epoch": 1, "update": 0.5, "loss": "2.5", "num_updates": "5"}\n{"epoch": 1, "valid_mIoU": "0.25", "valid_num_updates": "10"}\n'


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """As the fixture of this name beside this file, shared by the tests of this one."""
    with pytest.MonkeyPatch.context() as patch:
        yield make_toy(tmp_path_factory.mktemp("toy"), patch)


@pytest.fixture(scope="module")
def evaluated(toy, tmp_path_factory):
    """A run with two evaluations; not to be written to."""
    run = tmp_path_factory.mktemp("evaluated")
    for name, more in (("adapted", []), ("before", ["--resnet-iters", "9"])):
        assert (
            main(["evaluate", "model.pt", str(toy), "--device", "cpu", "--out", str(run / name), "--name", name, "--examples", "2", *more])
            == 0
        )
    (run / "train.log").write_text(CONFIGURATION.replace("@DATA@", str(toy)) + LOG)
    (run / "other.log").write_text("no records\n")
    return run


@pytest.fixture
def run_dir(evaluated, tmp_path):
    """A copy of that run."""
    return shutil.copytree(evaluated, tmp_path / "run")


def test_page_tables_and_charts(run_dir, capsys):
    (run_dir / "notes.txt").write_text("Written in a file.")
    assert main(["report", str(run_dir), "--title", "My run", "--notes", str(run_dir / "notes.txt")]) == 0
    page = (run_dir / "report.html").read_text()
    assert "<title>My run</title>" in page and "Written in a file." in page
    photos = {photo.name for photo in read_index(run_dir / "adapted" / "examples")}
    both = photos & {photo.name for photo in read_index(run_dir / "before" / "examples")}
    assert page.count("<img") == 4 * len(photos) + len(both)  # photo, labels, prediction, errors; and the other result's prediction
    assert page.count("<svg") == 7 and page.count('class="example card"') == len(photos) and len(both) >= 2
    for word in ("Best photos", "Worst photos", "Random photos", "Confusion", "segofa_tiny", "learning rate", "split", "toy"):
        assert word in page, word
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


def test_confusion_matrices_of_seeds_are_added_up(run_dir):
    assert main(["report", str(run_dir), "--result", f"one={run_dir}/adapted"]) == 0
    one = (run_dir / "report.html").read_text()
    pixels = read_matrix(run_dir / "adapted" / "confusion.npy", 3)
    assert f"({pixels[0, 0]:,} pixels)" in one
    assert main(["report", str(run_dir), "--result", f"both={run_dir}/[ab]*e*"]) == 0
    total = pixels + read_matrix(run_dir / "before" / "confusion.npy", 3)
    assert f"({total[0, 0]:,} pixels)" in (run_dir / "report.html").read_text()
    (run_dir / "before" / "confusion.npy").unlink()  # evaluated by an older version: no matrix rather than half of one
    assert main(["report", str(run_dir), "--result", f"both={run_dir}/[ab]*e*"]) == 0
    assert "Confusion matrix" not in (run_dir / "report.html").read_text()


def test_a_photo_is_shown_once_and_the_worst_first():
    photos = [ChosenPhoto(0, 0.9, ["best", "random"], "a"), ChosenPhoto(1, 0.3, ["worst"], "b"), ChosenPhoto(2, 0.1, ["worst"], "c")]
    shown = [("a", ("best", "random")), ("c", ("worst",)), ("b", ("worst",))]
    assert [(photo.name, groups) for photo, groups in shown_photos(photos, 4)] == shown
    assert [photo.name for photo, _ in shown_photos(photos, 1)] == ["a", "c"]
    assert shown_photos([ChosenPhoto(-1, name="old")], 4) == [(ChosenPhoto(-1, name="old"), ())]
    both = [ChosenPhoto(7, 0.9, ["best", "random"], "a"), ChosenPhoto(2, 0.1, ["random"], "b")]
    assert [(photo.name, groups) for photo, groups in shown_photos(both, 1)] == [("a", ("best",)), ("b", ("random",))]


@requires_chromium
def test_the_sliders_move_in_a_browser(run_dir):
    assert main(["report", str(run_dir)]) == 0
    examples = (run_dir / "report.html").read_text().count('class="example card"')
    dom = open_page(run_dir / "report.html", "#slider=30")
    assert dom.count('class="example card ready"') == examples
    assert dom.count('style="--x: 30%;"') == examples and 'aria-valuetext="30 % photo, the rest adapted"' in dom
    assert 'style="--x: 50%;"' in open_page(run_dir / "report.html")


def test_errors(run_dir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments in ([str(tmp_path / "absent")], [str(tmp_path / "empty")], [str(run_dir), "--result", "a=b"]):
        assert main(["report", *arguments]) == 2
    errors = capsys.readouterr().err
    assert "no such folder" in errors and "neither scores.json" in errors and "does not exist" in errors


def test_every_command_explains_itself(capsys):
    for command in ("evaluate", "predict", "report", "browse"):
        with pytest.raises(SystemExit) as exit_status:
            build_parser().parse_args([command, "--help"])
        assert exit_status.value.code == 0 and "--debug" in capsys.readouterr().out
