"""`fairseq-train --task image_text_pretraining` on toy shards with captions, and what the commands make of its checkpoints."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ofaseg.cli import main
from tests.integration.forked import shared_server
from tests.integration.pair_jobs import SPECIAL_TOKENS
from tests.toy import write_toy_shards
from tools.export_model import export

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NAMES = ("background", "green", "blue")
WORDS = "a the photo of and background green blue blocks . cat dog sky".split()
SIZES = ((32, 48), (48, 32), (32, 32))
RETRIEVAL = {f"val_{direction}-R@{k}" for direction in ("I2T", "T2I") for k in (1, 5, 10)} | {"val_RSUM"}
IMPORTED = ("fairseq_cli.train", "ofaseg", "timm.models.vision_transformer", "transformers.models.bert.modeling_bert")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Toy shards with captions, and a vocabulary of their words."""
    root = tmp_path_factory.mktemp("world")
    write_toy_shards(root / "data", "val", 7, sizes=SIZES, seed=1, names=NAMES, captions=True)
    write_toy_shards(root / "data", "train", 10, sizes=SIZES, seed=2, names=NAMES, captions=True)
    (root / "vocab.txt").write_text("".join(f"{word}\n" for word in (*SPECIAL_TOKENS, *WORDS)), encoding="utf-8")
    return root


def train(world, save_dir, *extra, **options):
    flags = (
        "--user-dir ofaseg --task image_text_pretraining --arch simseg_nano --criterion image_text_contrastive --image-size 32 "
        "--patch-image-size 32 --text-length 12 --templates photo --optimizer torch_adamw --lr 1e-3 --lr-scheduler cosine_warmup_ratio "
        "--batch-size 4 --max-epoch 2 --valid-subset val --batch-size-valid 3 --required-batch-size-multiple 1 --num-workers 0 "
        "--best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --log-interval 1 --no-epoch-checkpoints --seed 3"
    ).split()
    places = ["--bert-vocab", world / "vocab.txt", "--seg-data", world / "data", "--save-dir", save_dir]
    return shared_server(IMPORTED).train([world / "data", *places, *flags, *extra], **options).check()


def losses(outcome):
    return [row["loss"] for row in outcome.logs("train_inner")]


def scores(outcome):
    kept = ("loss", "acc_image_to_text", "I2T-R@1", "T2I-R@5", "RSUM", "mIoU", "aAcc")
    return [[row[f"val_{name}"] for name in kept] for row in outcome.logs("val")]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, train(world, folder, "--dropout", 0.0)


def test_validation_gives_retrieval_and_segmentation_scores_and_chooses_by_them(plain):
    folder, outcome = plain
    rows = outcome.logs("val")
    assert len(losses(outcome)) == 4 and len(rows) == 2
    for row in rows:
        assert RETRIEVAL | {"val_mIoU", "val_mAcc", "val_aAcc", "val_loss", "val_temperature"} <= set(row)
        assert all(math.isfinite(value) for name, value in row.items() if name.startswith("val_"))
        assert row["val_RSUM"] == pytest.approx(sum(row[name] for name in RETRIEVAL - {"val_RSUM"}), abs=1e-4)
        assert 0 < row["val_I2T-R@1"] <= row["val_I2T-R@5"] <= row["val_I2T-R@10"] <= 1
    assert rows[1]["val_best_mIoU"] == max(row["val_mIoU"] for row in rows)
    best = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    assert best["extra_state"]["best"] == rows[1]["val_best_mIoU"]


def test_two_processes_equal_one(world, plain, tmp_path):
    extra = ("--dropout", 0.0, "--batch-size", 2, "--distributed-world-size", 2, "--grouped-shuffling")
    outcome = train(world, tmp_path, *extra, nproc=2)
    assert len(losses(outcome)) == 4
    one = train(world, tmp_path / "one", "--dropout", 0.0, "--batch-size", 4, "--grouped-shuffling")
    assert losses(outcome) == pytest.approx(losses(one), abs=2e-3)
    for ours, theirs in zip(scores(outcome), scores(one), strict=True):
        assert ours[2:] == pytest.approx(theirs[2:], abs=2e-2)


def test_parts_of_a_batch_train_like_the_whole(world, plain, tmp_path):
    outcome = train(world, tmp_path, "--dropout", 0.0, "--sub-batch-size", 3)
    assert losses(outcome) == pytest.approx(losses(plain[1]), abs=2e-3)


@pytest.mark.parametrize("nproc", [1, 2])
def test_resume_is_exact(world, tmp_path, nproc):
    extra = ["--sub-batch-size", 1, "--batch-size", 4 // nproc, "--distributed-world-size", nproc, "--save-interval-updates", 3]
    extra += ["--total-num-update", 4, "--caption-augmentation"]
    whole = train(world, tmp_path / "whole", *extra, nproc=nproc)
    train(world, tmp_path / "parts", *extra, "--max-update", 3, nproc=nproc)
    rest = train(world, tmp_path / "parts", *extra, nproc=nproc)
    assert losses(rest) == losses(whole)[3:]
    assert scores(rest)[-1] == scores(whole)[-1]


def test_averaged_weights_are_validated_and_loaded(world, tmp_path):
    outcome = train(world, tmp_path / "run", "--store-ema", "--ema-decay", 0.5, "--lr", 0.03)
    logged = outcome.logs("val")[-1]["val_mIoU"]
    assert evaluate(tmp_path / "run" / "checkpoint_last.pt", world, tmp_path / "out", "--refine", "threshold")["mIoU"] == pytest.approx(
        logged, abs=1e-4
    )


# -- the commands ------------------------------------------------------------------------------------------------------


def evaluate(checkpoint, world, out, *more) -> dict:
    assert main(["evaluate", str(checkpoint), str(world / "data"), "--device", "cpu", "--out", str(out), "--examples", "0", *more]) == 0
    return json.loads((out / "scores.json").read_text())


def test_evaluate_repeats_the_validation(world, plain, tmp_path):
    folder, outcome = plain
    found = evaluate(folder / "checkpoint_last.pt", world, tmp_path / "out", "--refine", "threshold", "--batch-size", "3")
    row = outcome.logs("val")[-1]
    for name in ("mIoU", "mAcc", "aAcc"):
        assert found[name] == pytest.approx(row[f"val_{name}"], abs=1e-5)


@pytest.mark.parametrize("options", [["--refine", "pamr"], ["--refine", "none", "--flip"], ["--override", "zero_shot=dense", "--flip"], []])
def test_every_refinement_and_mirrored_photos(world, plain, tmp_path, options):
    found = evaluate(plain[0] / "checkpoint_best.pt", world, tmp_path / "out", *options)
    expected = {"": "dense_crf", "--override": "none"}.get(options[0] if options else "", options[1] if options else "dense_crf")
    assert found["images"] == 7 and 0 <= found["mIoU"] <= 1
    assert found["post_process"]["refine"] == expected and found["post_process"]["flip_average"] == ("--flip" in options)


def test_an_exported_model_has_the_same_scores(world, plain, tmp_path):
    """Its vocab.txt lies beside it, for the file says nothing about this machine's folders."""
    checkpoint, exported = plain[0] / "checkpoint_best.pt", tmp_path / "model" / "nano.safetensors"
    exported.parent.mkdir()
    export(str(checkpoint), str(exported), half=False, command="")
    assert str(world) not in exported.with_suffix(".json").read_text()
    if not (exported.parent / "vocab.txt").exists():
        (exported.parent / "vocab.txt").write_bytes((world / "vocab.txt").read_bytes())
    ours = evaluate(exported, world, tmp_path / "out", "--refine", "threshold")
    theirs = evaluate(checkpoint, world, tmp_path / "out2", "--refine", "threshold")
    for name in ("mIoU", "mAcc", "aAcc", "IoU_per_class"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("names", ["", "cat, dog", "background, cat, dog, sky"])
def test_predict_with_the_own_and_with_other_names(plain, tmp_path, names):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    command = ["predict", str(tmp_path / "x.png"), "--checkpoint", str(plain[0] / "checkpoint_best.pt"), "--device", "cpu"]
    more = ["--class-names", names] if names else []
    assert main([*command, "--out", str(tmp_path / "out"), *more]) == 0
    about = json.loads((tmp_path / "out" / "x.json").read_text())
    expected = names.split(", ") if names else list(NAMES)
    assert about["class_names"] == expected and (about["height"], about["width"]) == (40, 50)
    assert (about["post_process"]["candidates"] is None) == (expected[0] != "background")
    index = np.array(Image.open(tmp_path / "out" / "x_index.png"))
    assert index.shape == (40, 50) and index.max() < len(expected)
