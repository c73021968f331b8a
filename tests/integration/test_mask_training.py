"""`fairseq-train --task unified_segmentation` on toy shards: training, resuming, two processes, and what the commands make of it."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("open_clip")

from ofaseg.cli import main  # noqa: E402
from tests.integration.forked import shared_server  # noqa: E402
from tests.toy_freeseg import FLAGS, write_segment_shards  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

IMPORTED = ("fairseq_cli.train", "ofaseg", "open_clip.model")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for split, count in (("train", 8), ("val", 5)):
        write_segment_shards(root, split, count, sizes=((72, 96), (64, 64)), seed=count)
    return root


def train(world, save_dir, *extra, **options):
    flags = (
        "--user-dir ofaseg --optimizer torch_adamw --lr 1e-3 --lr-scheduler fixed --clip-norm 1 --batch-size 4 --max-epoch 6 --valid-subset val "
        "--batch-size-valid 3 --required-batch-size-multiple 1 --num-workers 0 --log-interval 1 --best-checkpoint-metric mIoU "
        "--maximize-best-checkpoint-metric --no-epoch-checkpoints --dropout 0 --without-regions --seed 3"
    ).split()
    return shared_server(IMPORTED).train([world, "--save-dir", save_dir, *flags, *FLAGS, *extra], **options).check()


def losses(outcome):
    return [float(row["loss"]) for row in outcome.logs("train_inner")]


def scores(outcome):
    return [[float(row[f"val_{name}"]) for name in ("loss", "mIoU")] for row in outcome.logs("val")]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, train(world, folder)


def test_the_loss_falls(plain):
    found = losses(plain[1])
    print(found, scores(plain[1]), [row for row in plain[1].logs('train_inner')][-1])
    assert len(found) == 12 and np.mean(found[-4:]) < 0.8 * np.mean(found[:4])
    assert len(scores(plain[1])) == 6 and scores(plain[1])[-1][0] < scores(plain[1])[0][0]


def test_resume_is_exact(world, plain, tmp_path):
    """The tasks drawn after resuming are those that would have been drawn; the middle of an epoch is no hindrance."""
    extra = ("--save-interval-updates", 5)
    train(world, tmp_path, *extra, "--max-update", 5)
    rest = train(world, tmp_path, *extra)
    assert losses(rest) == losses(plain[1])[5:] and scores(rest)[-1] == scores(plain[1])[-1]


def test_two_processes(world, tmp_path):
    """They draw one task, wait for each other, and 5 rows of validation do not divide by them."""
    extra = ("--max-epoch", 2, "--distributed-world-size", 2, "--batch-size", 3)
    outcome = train(world, tmp_path, *extra, nproc=2)
    assert len(losses(outcome)) == 4 and np.isfinite(losses(outcome)).all() and len(scores(outcome)) == 2


def test_commands_read_the_checkpoint(world, plain, tmp_path):
    checkpoint = str(plain[0] / "checkpoint_last.pt")
    assert main(["evaluate", checkpoint, str(world), "--device", "cpu", "--out", str(tmp_path), "--examples", "0"]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["mIoU"] == pytest.approx(scores(plain[1])[-1][1], abs=1e-4) and found["images"] == 5
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(photo)
    assert main(["predict", str(photo), "--checkpoint", checkpoint, "--device", "cpu", "--out", str(tmp_path / "p"), "--class-names", "cat,grass"]) == 0
    (index,) = (tmp_path / "p").rglob("*_index.png")
    with Image.open(index) as image:
        assert image.size == (90, 40) and set(np.unique(np.asarray(image))) <= {0, 1}
