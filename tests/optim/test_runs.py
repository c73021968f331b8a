"""The optimizer and the schedule inside fairseq-train: resuming, two processes, ZeRO stage 1."""

import pytest

from ofaseg.optim.fusioner import schedule
from tests.integration.forked import shared_server

pytestmark = pytest.mark.slow

TOY = [".", "--user-dir", "tests/toy_plugin", "--task", "toy_regression", "--arch", "toy_regression", "--criterion", "toy_mse"]
TOY += ["--optimizer", "torch_adamw", "--lr", "0.05", "--lr-scheduler", "cosine_warmup_ratio", "--warmup-ratio", "0.25"]
TOY += ["--batch-size", "2", "--disable-validation", "--no-progress-bar", "--log-interval", "1", "--max-epoch", "2"]


@pytest.fixture(scope="module")
def train():
    server = shared_server(OFASEG_NO_COMPAT="1")

    def run(folder, *argv, **options):
        argv = [*TOY, "--save-dir", folder, *argv]
        outcome = server.train(argv, env={"OFASEG_NO_COMPAT": ""}, **options).check()
        return [(row["num_updates"], row["loss"], row["lr"]) for row in outcome.logs("train_inner")]

    return run


def test_resume_in_the_middle_of_an_epoch_is_exact(train, tmp_path):
    straight = train(tmp_path / "straight")
    train(tmp_path / "stopped", "--stop-time-hours", 1e-9, "--save-interval-updates", 1)  # ends after the first update
    resumed = train(tmp_path / "stopped")
    assert [row[0] for row in resumed] == list(range(2, 15))
    assert resumed == straight[1:]


def test_zero1_equals_adamw_on_two_processes(train, tmp_path):
    plain = train(tmp_path / "plain", nproc=2)
    assert [row[0] for row in plain] == list(range(1, 9))  # 14 rows, 2 processes, batches of 2: 4 updates an epoch
    shared = train(tmp_path / "shared", "--zero1", "--max-update", 3, "--total-num-update", 8, nproc=2)
    shared += train(tmp_path / "shared", "--zero1", nproc=2)
    assert shared == plain


def test_zero1_checkpoint_resumes_in_one_process(train, tmp_path):
    train(tmp_path, "--zero1", "--max-update", 3, "--total-num-update", 14, nproc=2)
    assert [row[0] for row in train(tmp_path, "--reset-dataloader", "--max-update", 5, "--total-num-update", 14)] == [4, 5]


FUSIONER = [*TOY[: TOY.index("--optimizer")], "--optimizer", "fusioner_adamw", "--lr", "0.05", "--decoder-lr", "0.01"]
FUSIONER += ["--lr-scheduler", "fusioner_cosine", "--warmup-epochs", "1", *TOY[TOY.index("--batch-size") :]]


def test_fusioners_schedule_in_a_run(tmp_path):
    """Lengths in epochs: 14 updates, of which 7 are warm-up; the first changes nothing but a decoder; resumed runs go on exactly."""
    server = shared_server(OFASEG_NO_COMPAT="1")

    def run(folder, *argv):
        outcome = server.train([*FUSIONER, "--save-dir", folder, *argv], env={"OFASEG_NO_COMPAT": ""}).check()
        return [(row["num_updates"], row["loss"], row["lr"]) for row in outcome.logs("train_inner")]

    straight = run(tmp_path / "straight")
    assert [row[0] for row in straight] == list(range(1, 15))
    expected = [schedule(n, 7, 14, (0.05, 2e-6), (0.01, 0.4))[0] for n in range(1, 15)]  # logged once the next rate is set
    assert [float(row[2]) for row in straight] == pytest.approx(expected, rel=1e-4)
    run(tmp_path / "stopped", "--stop-time-hours", 1e-9, "--save-interval-updates", 1)
    assert run(tmp_path / "stopped") == straight[1:]
