"""The pretraining task through fairseq-train on a few drawn scenes, on one and two processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from criterions.vision_language_pretraining import VisionLanguagePretraining
from data_prep import shapes
from ofaseg.data.shards import ShardWriter
from ofaseg.models.ifseg import architecture_config
from tests.integration.forked import shared_server
from user_tasks.vision_language_pretraining import VisionLanguagePretrainingTask, VisionLanguagePretrainingTaskConfig

ASSETS = Path(shapes.__file__).resolve().parent.parent / "ofaseg" / "assets" / "shapes"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes whose training label maps hold no class at all: pretraining must not look at them."""
    nonsense = shapes.encode_png(np.full((96, 96), 200, dtype=np.uint8))
    root = tmp_path_factory.mktemp("shapes")
    for split, num in (("train", 16), ("val", 4)):
        with ShardWriter(str(root), split, shapes.vocabulary(), list(shapes.COLUMNS), format="parquet") as writer:
            for row in shapes.ShapesSource(split, num):
                writer.write(row | ({"label_map": nonsense} if split == "train" else {}))
    return root


def arguments(world, save_dir, *extra):
    flags = (
        "--user-dir ofaseg --task vision_language_pretraining --arch segofa_nano --criterion vision_language_pretraining "
        "--init-std 0.08 --train-image-encoder --train-token-embedding --train-text-decoder "
        "--optimizer torch_adamw --lr 3e-3 --lr-scheduler cosine_warmup_ratio --batch-size 8 --max-update 4 --batch-size-valid 4 "
        "--valid-subset val --required-batch-size-multiple 1 --log-interval 1 --no-epoch-checkpoints --seed 3 --autocast bf16"
    ).split()
    return [world, "--bpe-dir", ASSETS, "--save-dir", save_dir, *flags, *extra]


def train(world, save_dir, *extra, **options):
    return shared_server().train(arguments(world, save_dir, *extra), **options).check()


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


@pytest.mark.slow
def test_two_processes_equal_one(world, tmp_path):
    """The same samples per update (batch statistics would differ); the scores of validation are sums over both."""
    flags = ("--autocast", "none", "--frozen-batch-norm", "--curriculum", "99", "--transfer-probe")
    one = train(world, tmp_path / "one", *flags)
    halves = ("--batch-size", "4", "--batch-size-valid", "2", "--distributed-world-size", "2")
    two = train(world, tmp_path / "two", *flags, *halves, nproc=2)
    for tag, keys in (("train_inner", ("loss", "acc_caption", "gnorm")), ("val", ("val_loss", "val_transfer", "val_acc_copy"))):
        rows = [[row[key] for key in keys if key in row] for row in one.logs(tag)]
        assert rows and len(rows[0]) > 1
        for ours, theirs in zip([[row[key] for key in keys if key in row] for row in two.logs(tag)], rows, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-3)


@pytest.fixture
def world_with_bad_rows(tmp_path):
    """Row 1 of each split has an image of another size."""
    small = {"image": shapes.encode_png(np.zeros((40, 40), dtype=np.uint8)), "label_map": None}
    columns = ["image", "label_map", "captions", "boxes", "id"]
    for split, num in (("train", 16), ("val", 4)):
        with ShardWriter(str(tmp_path / "data"), split, shapes.vocabulary(), columns, format="tsv") as writer:
            for k, row in enumerate(shapes.ShapesSource(split, num)):
                writer.write({name: row[name] for name in columns} | (small if k == 1 else {}))
    return tmp_path / "data"


@pytest.mark.slow
def test_two_processes_train_when_one_of_them_lacks_images_or_rows(world_with_bad_rows, tmp_path):
    """One sample per process and step, most of them text alone; some process validates a batch whose only row is bad."""
    flags = "--batch-size 1 --batch-size-valid 1 --max-update 8 --distributed-world-size 2 --transfer-probe --caption-task 0.2"
    mixture = "--copy-task 0.6 --infill-task 0 --box-task 0 --crop-task 0.2 --alignment-captions --contrast-weight 1 --presence-weight 1"
    outcome = train(world_with_bad_rows, tmp_path / "out", *flags.split(), *mixture.split(), nproc=2)
    rows = outcome.logs("train_inner")
    assert len(rows) == 8 and {"presence" in row for row in rows} == {True, False}
    assert sum(row.get("bad_rows", 0) for row in rows) == 1 and outcome.logs("val")[-1]["val_bad_rows"] == 1
    assert {"val_loss", "val_transfer"} <= set(outcome.logs("val")[-1])
    assert "val-00000-of-00001.tsv, row 1, column " in "".join(outcome.texts)


@pytest.mark.slow
def test_alignment_without_captions_ends_in_one_message(world, tmp_path):
    outcome = shared_server().train(arguments(world, tmp_path, "--contrast-weight", "1"))
    assert outcome.returncode != 0 and "add --alignment-captions" in outcome.text


def make_task(**options):
    config = VisionLanguagePretrainingTaskConfig(data="", bpe_dir=str(ASSETS), class_names="sky, grass", seed=1, **options)
    return VisionLanguagePretrainingTask.setup_task(OmegaConf.structured(config))


def test_pretraining_trains_what_its_steps_reach_and_nothing_else():
    """A parameter that no step uses would let several processes wait for its gradient."""
    task = make_task()
    config = architecture_config("segofa_nano", train_image_encoder=True, train_token_embedding=True, train_text_decoder=True)
    config.train_class_embedding, config._name = True, "segofa_nano"
    model = task.build_model(config)
    tokens = torch.tensor([[0, 5, 6, 2]])
    text = {"src_tokens": tokens, "prev_output_tokens": tokens}
    batch = {"region_input": None, "text_input": text, "net_input": text | {"patch_images": torch.zeros(1, 3, 96, 96, dtype=torch.uint8)}}
    batch |= {"target": tokens.repeat(2, 1), "tasks": torch.tensor([0, 1]), "nsentences": 2, "ntokens": 8, "bad_rows": []}
    VisionLanguagePretraining(task, 0.0, 0.0)(model, batch)[0].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any("seg_" in name for name in model.state_dict()), "the checkpoint keeps them"
    adapted = type(model).build_model(config, task)
    assert any(parameter.requires_grad for name, parameter in adapted.named_parameters() if "seg_" in name)
