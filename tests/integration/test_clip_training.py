"""`fairseq-train --task image_text_pretraining --arch clip_nano`: CLIP trained on two data sets, evaluated, and taken by FreeSeg."""

import json

import pytest
import torch

from ofaseg.checkpoints import freeseg, load_state
from ofaseg.cli import main
from ofaseg.models.freeseg import FreeSeg, architecture_config
from tests.integration.forked import shared_server
from tests.toy import write_toy_shards
from user_tasks.image_text_pretraining import ImageTextPretrainingConfig, ImageTextPretrainingTask

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NAMES = ("background", "green", "blue")
IMPORTED = ("fairseq_cli.train", "ofaseg", "open_clip.model")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(shards, folder of the run, its outcome); `both` are joined: 14 rows, four updates an epoch."""
    root = tmp_path_factory.mktemp("world")
    for name, seed in (("one", 1), ("two", 2)):
        write_toy_shards(root / name, "train", 7, sizes=((32, 48), (48, 32)), seed=seed, names=NAMES, captions=True)
    write_toy_shards(root / "one", "val", 5, sizes=((32, 48),), seed=3, names=NAMES, captions=True)
    write_toy_shards(root / "two", "val", 2, sizes=((32, 32),), seed=4, names=NAMES, captions=True)
    flags = (
        "--user-dir ofaseg --task image_text_pretraining --arch clip_nano --criterion image_text_contrastive --text-tokenizer clip_bpe "
        "--patch-image-size 32 --text-length 12 --templates photo --optimizer torch_adamw --lr 1e-3 --lr-scheduler cosine_warmup_ratio "
        "--batch-size 4 --max-epoch 2 --valid-subset val --batch-size-valid 3 --required-batch-size-multiple 1 --num-workers 0 "
        "--zero-shot dense --best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --log-interval 1 --no-epoch-checkpoints --seed 3"
    ).split()
    places = ["--seg-data", root / "one", "--save-dir", root / "run"]
    outcome = shared_server(IMPORTED).train([f"{root / 'one'},{root / 'two'}", *places, *flags]).check()
    return root, outcome


def test_all_rows_of_both_are_trained_on_and_validated(trained):
    _, outcome = trained
    inner, rows = outcome.logs("train_inner"), outcome.logs("val")
    assert len(inner) == 6 and len(rows) == 2  # batches of four pairs, two of the 14 rows are left over
    for row in rows:
        assert 0 <= row["val_mIoU"] <= 1 and 0 < row["val_I2T-R@5"] <= 1


def test_evaluate_repeats_the_validation(trained, tmp_path):
    root, outcome = trained
    command = ["evaluate", str(root / "run" / "checkpoint_last.pt"), str(root / "one"), "--device", "cpu", "--examples", "0"]
    assert main([*command, "--out", str(tmp_path), "--batch-size", "3"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["mIoU"] == pytest.approx(outcome.logs("val")[-1]["val_mIoU"], abs=1e-5)


def test_freeseg_takes_the_towers(trained):
    path = trained[0] / "run" / "checkpoint_last.pt"
    model = FreeSeg(architecture_config("freeseg_nano"), None)
    freeseg.load_clip(model, path)
    weights = load_state(path)["model"]
    assert any(key.startswith("clip.visual.") for key in weights)
    own = model.state_dict()
    for key, value in weights.items():
        if key in own:
            torch.testing.assert_close(own[key], value)
    torch.testing.assert_close(model.prompt.end_signal[0], weights["clip.token_embedding.weight"][49407])


def test_caption_augmentation_is_for_word_pieces():
    with pytest.raises(ValueError, match="text-tokenizer wordpiece alone"):
        ImageTextPretrainingTask(ImageTextPretrainingConfig(data="", text_tokenizer="clip_bpe", caption_augmentation=True))
