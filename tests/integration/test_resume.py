"""Killing a run and starting it again, on the toy task: one process and two."""

import pytest

from tests.integration.forked import shared_server

pytestmark = pytest.mark.slow

TOY = [".", "--user-dir", "tests/toy_plugin", "--task", "toy_regression", "--arch", "toy_regression", "--criterion", "toy_mse"]
TOY += ["--optimizer", "torch_adamw", "--lr", "0.05", "--lr-scheduler", "cosine_warmup_ratio", "--batch-size", "2", "--max-epoch", "6"]
TOY += ["--disable-validation", "--no-progress-bar", "--log-interval", "1", "--no-epoch-checkpoints"]
TOY += ["--save-interval-updates", "1", "--keep-interval-updates", "1"]


@pytest.mark.parametrize("nproc, updates", [(1, 42), (2, 24)])
def test_killed_run_continues_exactly(tmp_path, nproc, updates):
    """14 rows, batches of 2: 7 updates an epoch on one process, 4 on two."""
    server = shared_server(OFASEG_NO_COMPAT="1")

    def train(folder, **options):
        outcome = server.train([*TOY, "--save-dir", folder], env={"OFASEG_NO_COMPAT": ""}, nproc=nproc, **options)
        return outcome, {int(row["num_updates"]): (row["loss"], row["lr"]) for row in outcome.logs("train_inner")}

    unbroken, straight = train(tmp_path / "straight")
    assert unbroken.check() and sorted(straight) == list(range(1, updates + 1))
    killed, first = train(tmp_path / "killed", kill_after="@ 10 updates, score")
    assert killed.returncode == -9 and max(first) >= 10
    resumed, second = train(tmp_path / "killed")
    assert resumed.check() and min(second) > 8, "it starts again from a checkpoint of the killed run"
    assert max(second) == updates
    assert all(straight[update] == second[update] for update in second)
