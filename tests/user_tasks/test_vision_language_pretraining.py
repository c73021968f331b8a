"""The pretraining task through fairseq-train on a few drawn scenes."""

from pathlib import Path

import numpy as np
import pytest

from data_prep import shapes
from ofaseg.data.shards import ShardWriter
from tests.integration.forked import shared_server

ASSETS = Path(shapes.__file__).resolve().parent.parent / "ofaseg" / "assets" / "shapes"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes whose training label maps hold no class at all: pretraining must not look at them."""
    nonsense = shapes.encode_png(np.full((96, 96), 200, dtype=np.uint8))
    root = tmp_path_factory.mktemp("shapes")
    for split, num in (("train", 16), ("val", 4)):
        with ShardWriter(str(root), split, shapes.vocabulary(), list(shapes.COLUMNS), format="parquet") as writer:
            for row in shapes.iter_samples(None, split, num=num, seed=1):
                writer.write(row | ({"label_map": nonsense} if split == "train" else {}))
    return root


def train(world, save_dir, *extra):
    flags = (
        "--user-dir ofaseg --task vision_language_pretraining --arch segofa_nano --criterion vision_language_pretraining "
        "--init-std 0.08 --train-image-encoder --train-token-embedding --train-text-decoder "
        "--optimizer torch_adamw --lr 3e-3 --lr-scheduler cosine_warmup_ratio --batch-size 8 --max-update 4 --batch-size-valid 4 "
        "--valid-subset val --required-batch-size-multiple 1 --log-interval 1 --no-epoch-checkpoints --seed 3 --autocast bf16"
    ).split()
    return shared_server().train([world, "--bpe-dir", ASSETS, "--save-dir", save_dir, *flags, *extra]).check()


@pytest.mark.slow
def test_trains_validates_and_probes_transfer(world, tmp_path):
    outcome = train(world, tmp_path, "--transfer-probe")
    losses = [row["loss"] for row in outcome.logs("train_inner")]
    assert len(losses) == 4 and losses[-1] < losses[0]
    validation = outcome.logs("val")[-1]
    assert 0 <= validation["val_transfer"] <= 1 and 0 <= validation["val_acc_caption"] <= 1


@pytest.mark.slow
def test_alignment_losses_are_logged_and_repeatable(world, tmp_path):
    flags = ("--alignment-captions", "--contrast-weight", "1", "--presence-weight", "0.5", "--disable-validation")
    first = train(world, tmp_path / "a", *flags).logs("train_inner")
    assert all(row["contrast"] > 0 and row["presence"] > 0 for row in first)
    assert [row["loss"] for row in first] == [row["loss"] for row in train(world, tmp_path / "b", *flags).logs("train_inner")]
