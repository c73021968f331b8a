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
        "--user-dir ofaseg --optimizer torch_adamw --lr 1e-3 --lr-scheduler fixed --clip-norm 0.1 --batch-size 4 --valid-subset val "
        "--batch-size-valid 3 --required-batch-size-multiple 1 --num-workers 0 --log-interval 1 --best-checkpoint-metric mIoU "
        "--maximize-best-checkpoint-metric --no-epoch-checkpoints --dropout 0 --without-regions --seed 3"
    ).split()
    return shared_server(IMPORTED).train([world, "--save-dir", save_dir, *flags, *FLAGS, *extra], **options).check()


def of_updates(outcome, name="loss"):
    return [float(row[name]) for row in outcome.logs("train_inner")]


def scores(outcome):
    return [[float(row[f"val_{name}"]) for name in ("loss", "mIoU")] for row in outcome.logs("val")]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    """Long enough for class maps that are better than those of one class everywhere."""
    folder = tmp_path_factory.mktemp("plain")
    extra = ("--tasks", "semantic", "--no-photo-augmentation", "--max-epoch", 40, "--validate-interval", 20, "--save-interval", 20)
    return folder, train(world, folder, *extra)


def test_the_loss_falls(plain):
    found = of_updates(plain[1])
    assert len(found) == 80 and np.mean(found[-10:]) < 0.4 * np.mean(found[:10])
    assert len(scores(plain[1])) == 2 and scores(plain[1])[-1][1] > 0.35  # blue everywhere: 0.25


def test_resume_in_the_middle_of_an_epoch_is_exact(world, tmp_path):
    """The tasks that are drawn after resuming are those that would have been drawn."""
    extra = ("--save-interval-updates", 5, "--max-epoch", 5)
    whole = train(world, tmp_path / "whole", *extra)
    train(world, tmp_path / "parts", *extra, "--max-update", 5)
    rest = train(world, tmp_path / "parts", *extra)
    assert of_updates(rest) == of_updates(whole)[5:] and scores(rest)[-1] == scores(whole)[-1]


def test_two_processes_see_the_same_masks_as_one(world, tmp_path):
    """They draw one task, and mask losses are means over the masks of both; 5 rows of validation do not divide by them."""
    one = train(world, tmp_path / "one", "--max-epoch", 2, "--curriculum", 99)
    two = train(world, tmp_path / "two", "--max-epoch", 2, "--curriculum", 99, "--distributed-world-size", 2, "--batch-size", 2, nproc=2)
    for name in ("loss_mask", "loss_dice"):  # later updates differ: the class loss is a mean per process
        assert of_updates(two, name)[0] == pytest.approx(of_updates(one, name)[0], abs=1e-3)
    assert np.isfinite(of_updates(two)).all() and len(scores(two)) == len(scores(one)) == 2


def test_commands_read_the_checkpoint(world, plain, tmp_path):
    checkpoint = str(plain[0] / "checkpoint_last.pt")
    assert main(["evaluate", checkpoint, str(world), "--device", "cpu", "--out", str(tmp_path), "--examples", "0"]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["mIoU"] == pytest.approx(scores(plain[1])[-1][1], abs=1e-4) and found["images"] == 5
    assert (np.load(tmp_path / "confusion.npy").sum(0) > 0).sum() > 1
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(photo)
    assert (
        main(
            [
                "predict",
                str(photo),
                "--checkpoint",
                checkpoint,
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "p"),
                "--class-names",
                "cat,grass",
            ]
        )
        == 0
    )
    (index,) = (tmp_path / "p").rglob("*_index.png")
    with Image.open(index) as image:
        assert image.size == (90, 40) and set(np.unique(np.asarray(image))) <= {0, 1}
