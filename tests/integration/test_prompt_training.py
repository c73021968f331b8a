"""`fairseq-train` through both stages of FreeSeg on toy shards: prompts, resuming, two processes, then masks that start from them."""

import pytest
import torch

pytest.importorskip("open_clip")

from tests.checkpoints.clip_files import nano_state, openai_state  # noqa: E402
from tests.integration.forked import shared_server  # noqa: E402
from tests.toy_freeseg import vocabulary_of, write_segment_shards  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

IMPORTED = ("fairseq_cli.train", "ofaseg", "open_clip.model")
SCORES = ("loss", "acc_top1", "acc_top1_base", "acc_top1_novel")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    vocabulary = vocabulary_of(novel=(False, True, False))
    for split, count in (("train", 8), ("val", 5)):
        write_segment_shards(root, split, count, sizes=((72, 96), (64, 64)), seed=count, vocabulary=vocabulary)
    torch.save(openai_state(nano_state()), root / "clip.pt")
    return root


def train(world, save_dir, *extra, **options):
    flags = (
        "--user-dir ofaseg --task prompt_learning --criterion region_cross_entropy --arch freeseg_prompt_nano --samples-per-class 6 "
        "--optimizer sgd --momentum 0.9 --weight-decay 0.001 --lr 0.02 --clip-norm 0.01 --lr-scheduler cosine_constant_warmup "
        "--warmup-updates 2 --max-epoch 4 --batch-size 8 --valid-subset val --batch-size-valid 4 --required-batch-size-multiple 1 "
        "--num-workers 0 --log-interval 1 --best-checkpoint-metric acc_top1 --maximize-best-checkpoint-metric --no-epoch-checkpoints "
        "--seed 3"
    ).split()
    places = ["--clip-checkpoint", world / "clip.pt", "--save-dir", save_dir]
    return shared_server(IMPORTED).train([world, *places, *flags, *extra], **options).check()


def of_updates(outcome, name="loss"):
    return [float(row[name]) for row in outcome.logs("train_inner")]


def scores(outcome):
    return [[float(row[f"val_{name}"]) for name in SCORES] for row in outcome.logs("val")]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, train(world, folder, "--curriculum", 99)


def test_the_loss_falls_and_all_groups_are_scored(plain):
    found = [row[0] for row in scores(plain[1])]  # of validation: windows of 6 regions per class differ too much from step to step
    assert len(found) == 4 and found == sorted(found, reverse=True) and found[-1] < found[0] - 0.02
    state = torch.load(plain[0] / "checkpoint_last.pt", weights_only=True)["model"]
    torch.testing.assert_close(state["clip.ln_final.weight"], nano_state()["ln_final.weight"])


def test_resume_in_the_middle_of_an_epoch_is_exact(world, tmp_path):
    extra = ("--save-interval-updates", 5)
    whole = train(world, tmp_path / "whole", *extra)
    train(world, tmp_path / "parts", *extra, "--max-update", 5, "--total-num-update", len(of_updates(whole)))
    rest = train(world, tmp_path / "parts", *extra)
    assert of_updates(rest) == of_updates(whole)[5:] and scores(rest)[-1] == scores(whole)[-1]


def test_two_processes_equal_one(world, plain, tmp_path):
    """Losses, gradients and accuracies, although regions of validation do not divide by two processes."""
    two = train(world, tmp_path, "--curriculum", 99, "--distributed-world-size", 2, "--batch-size", 4, nproc=2)
    for name, tolerance in (("loss", 2e-3), ("gnorm", 2e-2)):
        assert of_updates(two, name) == pytest.approx(of_updates(plain[1], name), abs=tolerance, rel=1e-3)
    for ours, theirs in zip(scores(two), scores(plain[1]), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-3)


def test_masks_start_from_the_prompts(world, plain, tmp_path):
    """The second stage keeps the prompts of the first as they are; a run in bf16 is one, too."""
    flags = (
        "--user-dir ofaseg --task unified_segmentation --criterion mask_matching --arch freeseg_nano --patch-image-size 64 --dropout 0 "
        "--frozen-prompts --optimizer freeseg_adamw --lr 1e-3 --weight-decay 1e-4 --clip-norm 0.01 --lr-scheduler polynomial_decay "
        "--power 0.9 --max-update 4 --total-num-update 4 --batch-size 4 --valid-subset val --batch-size-valid 1 --without-regions "
        "--required-batch-size-multiple 1 --num-workers 0 --log-interval 1 --no-epoch-checkpoints --seed 3"
    ).split()
    prompts = plain[0] / "checkpoint_last.pt"
    places = ["--clip-checkpoint", world / "clip.pt", "--prompt-checkpoint", prompts, "--save-dir", tmp_path]
    outcome = shared_server(IMPORTED).train([world, *places, *flags]).check()
    rates = [float(row["lr"]) for row in outcome.logs("train_inner")]
    assert rates == pytest.approx([1e-3 * (1 - n / 4) ** 0.9 for n in (1, 2, 3, 4)], rel=1e-3)  # logged once the next rate is set
    first, second = (torch.load(path, weights_only=True)["model"] for path in (prompts, tmp_path / "checkpoint_last.pt"))
    for name in ("prompt.class_prompt", "prompt.task_prompt", "prompt.end_signal"):
        assert torch.equal(first[name], second[name]), name
