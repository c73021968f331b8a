"""Every patch of ofaseg/compat.py: the job it is for fails when it alone is switched off, and runs when it is on."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ofaseg.compat import PATCHES, _refused_in_set_up
from ofaseg.prompts import load_templates
from ofaseg.utils.arguments import at_least
from tests.integration.forked import ROOT, shared_server
from tests.integration.import_facts import fresh_import

pytestmark = pytest.mark.slow

ON = ""  # values of OFASEG_NO_COMPAT
ALL_OFF = "1"
TOY = [".", "--user-dir", "tests/toy_plugin", "--task", "toy_regression", "--arch", "toy_regression", "--criterion", "toy_mse"]
TOY += ["--optimizer", "adam", "--lr", "0.01", "--batch-size", "2", "--disable-validation", "--no-progress-bar"]


@pytest.fixture(scope="module")
def server():
    """fairseq and ofaseg imported without any patch; the toy plug-in applies them in the forked child."""
    return shared_server(OFASEG_NO_COMPAT=ALL_OFF)


def run_training(server, folder, *argv, off=ON, updates=2, nproc=1):
    argv = [*TOY, "--save-dir", folder, "--max-update", updates, *argv]
    return server.train(argv, env={"OFASEG_NO_COMPAT": off}, nproc=nproc)


@pytest.fixture
def train(server, tmp_path):
    return functools.partial(run_training, server, tmp_path)


@pytest.fixture(scope="module")
def two_processes(server, tmp_path_factory):
    """(folder, outcome) of a job of two processes, started as torchrun does, with all patches."""
    folder = tmp_path_factory.mktemp("two_processes")
    return folder, run_training(server, folder, nproc=2).check()


@pytest.fixture
def call(server):
    def run(name, *args, off=ON):
        return server.call(f"tests.integration.toy_jobs:{name}", *args, env={"OFASEG_NO_COMPAT": off})

    return run


AFTER_IMPORT = [name for name in PATCHES if name not in ("P7", "P9", "P11")]  # the plug-in comes after fairseq, in no fairseq-train


def test_all_patches_are_needed_here(call):
    assert call("patches_in_place").check().value == AFTER_IMPORT


def test_the_switch(call):
    assert call("patches_in_place", off=ALL_OFF).check().value == []
    assert call("patches_in_place", off="P1b,P4").check().value == [name for name in AFTER_IMPORT if name not in ("P1b", "P4")]
    refused = call("patches_in_place", off="P99")
    assert refused.returncode == 1 and "unknown patch ['P99']" in refused.text


def test_p12_a_copy_is_whole_or_not_there(call, tmp_path):
    assert call("copy_that_breaks_off", str(tmp_path / "on")).check().value == ["old", "new"]
    assert call("copy_that_breaks_off", str(tmp_path / "off"), off="P12").check().value[0] == "ne"


READERS = """
import atexit, time
readers = []
atexit.register(lambda: print([reader._consumer.is_alive() for reader in readers], flush=True))  # runs last, for it is registered first
import ofaseg
from fairseq.data.iterators import BufferedIterator

class Slow(list):
    def __iter__(self):
        for item in range(len(self)):
            time.sleep(0.3)
            yield item

readers += [BufferedIterator(2, range(100)), BufferedIterator(2, Slow(range(100)))]  # held up by its full queue; reading
assert [next(reader) for reader in readers] == [0, 0]
"""


@pytest.mark.parametrize("off", ["", "P13"])
def test_p13_readers_end_before_the_interpreter(off):
    environment = os.environ | {"OFASEG_NO_COMPAT": off, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", READERS], capture_output=True, text=True, env=environment)
    assert run.stdout.splitlines()[-1:] == [str([bool(off)] * 2)], run.stderr
    assert off or run.returncode == 0


def test_p1a_checkpoints_with_a_namespace(call, tmp_path):
    path = str(tmp_path / "old.pt")
    assert "UnpicklingError" in call("load_legacy_checkpoint", path, off="P1a").text
    assert call("load_legacy_checkpoint", path).check().value == ["old", 0.5, [1.0, 1.0]]


def test_p1a_keeps_loading_restricted(call, tmp_path):
    assert "UnpicklingError" in call("load_foreign_object", str(tmp_path / "foreign.pt")).text


def test_p1a_meters_with_numpy_scalars(train):
    train("--toy-log", "numpy").check()
    assert train("--toy-log", "numpy", updates=4).check().logs()[-1]["train_num_updates"] == 4


def test_p1b_resume_on_two_processes(server, two_processes):
    folder, _ = two_processes
    failed = run_training(server, folder, off="P1b", updates=4, nproc=2)
    assert failed.returncode and "UnpicklingError" in failed.texts[1]
    resumed = run_training(server, folder, updates=4, nproc=2).check()
    assert "epoch 1 @ 2 updates" in resumed.text and resumed.logs()[-1]["train_num_updates"] == 4


def test_p2a_torchrun_without_a_gpu(train, two_processes):
    assert "ZeroDivisionError" in train("--distributed-world-size", 2, off="P2a", nproc=2).text
    _, outcome = two_processes  # it has no --distributed-world-size: still one job of two, not two jobs
    assert "training on 2 devices" in outcome.text
    assert outcome.logs()[-1]["train_bsz"] == 4


def test_p2b_spawning_without_a_gpu(call, tmp_path):
    user_dir = str(ROOT / "tests" / "toy_plugin")
    assert "have 0 available devices" in call("spawn_two", str(tmp_path), user_dir, off=ALL_OFF).text
    call("spawn_two", str(tmp_path), user_dir, off="P2b").check()
    assert not list(tmp_path.iterdir()), "without P2b no process starts"
    call("spawn_two", str(tmp_path), user_dir).check()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"rank0": "2 3 gloo True", "rank1": "2 3 gloo True"}


def test_p2c_ddp_of_a_cpu_model(train, two_processes):
    assert "device_ids" in train(off="P2c", nproc=2).text
    assert "training on 2 devices" in two_processes[1].text


def test_p2d_gathering_lists_without_a_gpu(train):
    failed = train("--toy-log", "list", off="P2d", nproc=2)
    assert failed.returncode and "CUDA" in failed.text
    listed = train("--toy-log", "list", nproc=2).check().logs()[-1]
    assert listed["train_bsz"] == 4


def test_p3_bf16_flag(train):
    assert "xla_device" in train("--bf16", off="P3").text
    train("--bf16").check()


def test_p4_average_of_integer_buffers(train):
    assert "can't be cast" in train("--store-ema", off="P4").text
    train("--store-ema").check()


def test_p5_start_without_warnings(train, two_processes):
    assert train(off="P5").check().text.count("Warning") >= 5
    assert "Warning" not in two_processes[1].text


@pytest.mark.parametrize("updates, max_epoch", [(14, 2), (6, 9)])
def test_p6_schedule_learns_the_length_of_the_run(train, updates, max_epoch):
    """14 rows in batches of 2: two epochs are 14 updates; --max-update 6 ends the second run in its first epoch."""
    argv = ["--lr-scheduler", "cosine_warmup_ratio", "--log-interval", 1, "--max-epoch", max_epoch]
    limit = 0 if max_epoch == 2 else updates
    if not limit:
        refused = train(*argv, off="P6", updates=limit)
        assert "give --max-update or --total-num-update" in refused.text
    rates = [row["lr"] for row in train(*argv, updates=limit).check().logs("train_inner")]
    assert len(rates) == updates
    assert rates[updates // 2 - 1] == pytest.approx(0.005) and rates[-1] == 0


def test_p8_a_task_checks_what_it_resumes(train):
    train("--toy-words", "cat dog").check()
    train("--toy-words", "dog cat", off="P8", updates=3).check()
    assert "began with the words 'dog cat'" in train("--toy-words", "cat dog", updates=4).text
    train("--toy-words", "dog cat", updates=4).check()
    train("--toy-words", "cat dog", "--reset-optimizer", "--reset-dataloader", updates=6).check()  # a new run from old weights


def test_p8_every_process_complains_itself(train):
    """A complaint of rank 0 alone would leave the others waiting for it."""
    train("--toy-words", "cat dog", nproc=2).check()
    refused = train("--toy-words", "dog cat", updates=4, nproc=2)
    assert refused.returncode and all("began with the words 'cat dog'" in text for text in refused.texts)
    train("--toy-words", "cat dog", updates=4, nproc=2).check()


def test_p10_data_that_are_no_folder(call, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "valid1.tsv").write_text("")
    (tmp_path / "list.csv").write_text("")
    data = f"{tmp_path}/a,{tmp_path}/list.csv"
    assert "FileNotFoundError" in call("forgotten_subsets", data, off="P10").text
    assert call("forgotten_subsets", data).check().value == ["valid1"]
    assert call("forgotten_subsets", f"{tmp_path}/a:{tmp_path}/b").check().value == ["valid1"]
    assert call("forgotten_subsets", f"{tmp_path}/list.csv:{tmp_path}/nowhere").check().value == []


@pytest.fixture(scope="module")
def without_p7_and_p9():
    """What importing does without these two, which have nothing to do with each other: one new process for both."""
    return fresh_import("P7,P9")


def test_p7_importing_leaves_the_root_logger_alone(without_p7_and_p9):
    """Level and number of handlers: fairseq's models set DEBUG (10) and a handler."""
    assert without_p7_and_p9["root"] == [10, 1] and "tensorboardX" in without_p7_and_p9["stderr"]
    assert fresh_import()["root"] == [30, 0] and not fresh_import()["stderr"]


def test_p9_large_packages_wait(without_p7_and_p9):
    """The metrics of fairseq's tasks on words and sounds import them when they are computed."""
    large = {"sklearn", "scipy", "wandb"}
    assert large <= set(without_p7_and_p9["modules"]) and not large & set(fresh_import()["modules"])


@pytest.mark.parametrize("off", ["", "P11"])
def test_p11_user_errors_end_fairseq_train_in_a_line(tmp_path, off):
    flags = "--cpu --batch-size 1 --task seq2seq_segmentation --criterion seg_token_cross_entropy --arch segofa_nano".split()
    command = [Path(sys.executable).parent / "fairseq-train", tmp_path / "nothere", "--user-dir", ROOT / "ofaseg", *flags]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"OFASEG_NO_COMPAT": off})
    assert run.returncode == 1 and "nothere: no such folder" in run.stderr.splitlines()[-1]
    assert ("Traceback" in run.stderr) == bool(off), run.stderr


def setup_task(work):
    work()


def other_task(work):
    work()


@pytest.mark.parametrize(
    "through, work, expected",
    [
        (setup_task, lambda: load_templates("nope"), True),
        (other_task, lambda: load_templates("nope"), False),  # in a step it may be a fault of the code
        (setup_task, lambda: at_least("x")("1"), False),  # not raised by a line of ours: a fault of the code
        (setup_task, lambda: int("x"), False),
    ],
)
def test_p11_what_a_set_up_refuses_is_an_error_of_the_user(through, work, expected):
    with pytest.raises((ValueError, TypeError)) as error:
        through(work)
    assert _refused_in_set_up(error.value.__traceback__) is expected
