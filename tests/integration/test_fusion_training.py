"""`fairseq-train --task fusion_segmentation` on toy shards: training, resuming, two processes, and what the commands make of it."""

import json

import pytest
import torch

from ofaseg.cli import main
from tests.integration.forked import shared_server
from tests.toy import NAMES, write_toy_shards
from tests.toy_fusioner import MODEL_FLAGS, write_table

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

IMPORTED = ("fairseq_cli.train", "ofaseg", "timm.models.vision_transformer", "transformers.models.bert.modeling_bert")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for split, count in (("train", 9), ("val", 5)):
        write_toy_shards(root / "data", split, count, sizes=((32, 48), (40, 40)), seed=count)
    write_table(root, NAMES)
    return root


def train(world, save_dir, *extra, **options):
    flags = (
        "--user-dir ofaseg --task fusion_segmentation --criterion masked_binary_cross_entropy --novel-classes blue --patch-image-size 32 "
        "--text-tokenizer table --optimizer fusioner_adamw --lr 1e-3 --lr-scheduler fusioner_cosine --warmup-epochs 1 --batch-size 4 "
        "--max-epoch 3 --valid-subset val --batch-size-valid 3 --required-batch-size-multiple 1 --num-workers 0 --log-interval 1 "
        "--best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --no-epoch-checkpoints --seed 3"
    ).split()
    places = ["--text-embeddings", world / "texts.npz", "--save-dir", save_dir]
    return shared_server(IMPORTED).train([world / "data", *places, *flags, *MODEL_FLAGS, *extra], **options).check()


def losses(outcome):
    return [row["loss"] for row in outcome.logs("train_inner")]


def scores(outcome):
    return [[row[f"val_{name}"] for name in ("loss", "mIoU", "FB_IoU")] for row in outcome.logs("val")]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, train(world, folder)


def test_the_loss_falls_and_novel_classes_are_scored(plain):
    _, outcome = plain
    assert len(scores(outcome)) == 3 and float(losses(outcome)[-1]) < float(losses(outcome)[0])
    state = torch.load(plain[0] / "checkpoint_last.pt", weights_only=True)
    towers = [key for key in state["model"] if key.startswith("towers.")]
    assert sorted(towers) == ["towers.image_sha256", "towers.text_sha256"], "towers are not saved"


@pytest.mark.parametrize("nproc", [1, 2])
def test_resume_in_the_middle_of_an_epoch_is_exact(world, tmp_path, nproc):
    """The schedule of weight decay goes on where it was, too."""
    extra = ["--batch-size", 4 // nproc, "--distributed-world-size", nproc, "--save-interval-updates", 4, "--total-num-update", 12]
    extra += ["--curriculum", 99]
    whole = train(world, tmp_path / "whole", *extra, nproc=nproc)
    train(world, tmp_path / "parts", *extra, "--max-update", 4, nproc=nproc)
    rest = train(world, tmp_path / "parts", *extra, nproc=nproc)
    assert losses(rest) == losses(whole)[4:]
    assert scores(rest)[-1] == scores(whole)[-1]


def test_commands_read_the_checkpoint(world, plain, tmp_path):
    checkpoint = str(plain[0] / "checkpoint_last.pt")
    assert main(["fewshot", checkpoint, str(world / "data"), "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "fewshot.json").read_text())
    assert found["class_names"] == ["blue"]
    assert found["mIoU"] == pytest.approx(float(scores(plain[1])[-1][1]), abs=1e-5)


def test_two_processes_equal_one(world, tmp_path):
    """Same samples per update, so the same losses; and the same scores although 5 rows do not divide by 2 ranks."""
    one = train(world, tmp_path / "one", "--curriculum", 99)
    two = train(world, tmp_path / "two", "--curriculum", 99, "--batch-size", 2, "--distributed-world-size", 2, nproc=2)
    assert losses(two) == pytest.approx(losses(one), abs=2e-3)
    for ours, theirs in zip(scores(two), scores(one), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-2)


def test_ranks_with_another_number_of_validation_batches(world, tmp_path):
    """Three batches among two ranks: the rank without a second one sums up the same kinds of numbers."""
    flags = ("--max-epoch", 1, "--batch-size-valid", 2)
    one = train(world, tmp_path / "one", *flags)
    two = train(world, tmp_path / "two", *flags, "--batch-size", 2, "--distributed-world-size", 2, nproc=2)
    assert scores(two)[0] == pytest.approx(scores(one)[0], abs=2e-2)


def test_several_classes_per_sample_and_accumulation(world, tmp_path):
    extra = ("--curriculum", 99, "--num-present", 1, "--num-absent", 1)
    one = train(world, tmp_path / "one", *extra)
    parts = train(world, tmp_path / "parts", *extra, "--batch-size", 2, "--update-freq", 2)
    assert losses(parts) == pytest.approx(losses(one), abs=2e-3)
