"""`fairseq-train --user-dir ofaseg` on toy shards: what people expect of a training run, on one and two processes."""

import glob
import math

import pytest
import sentencepiece
import torch

from ofaseg.data import codec
from tests.integration.forked import shared_server
from tests.toy import NAMES, PROMPT_WORDS, write_toy_shards, write_words

pytestmark = pytest.mark.slow

SIZES = ((32, 48), (48, 32), (32, 32))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Toy shards of both splits and a word dictionary."""
    root = tmp_path_factory.mktemp("world")
    write_toy_shards(root / "data", "val", 7, sizes=SIZES, seed=1)
    write_toy_shards(root / "data", "train", 10, sizes=SIZES, seed=2)
    write_words(root / "bpe", [*NAMES, *PROMPT_WORDS])
    return root


def arguments(world, save_dir, *extra):
    flags = (
        "--user-dir ofaseg --task seq2seq_segmentation --arch segofa_nano --criterion seg_token_cross_entropy "
        "--patch-image-size 32 --orig-patch-image-size 32 --optimizer torch_adamw --lr 3e-3 --lr-scheduler cosine_warmup_ratio "
        "--batch-size 4 --epoch-size 24 --max-epoch 2 --valid-subset val --batch-size-valid 2 --required-batch-size-multiple 1 "
        "--best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --log-interval 1 --no-epoch-checkpoints --seed 3"
    ).split()
    return [world / "data", "--bpe-dir", world / "bpe", "--save-dir", save_dir, *flags, *extra]


def train(world, save_dir, *extra, **options):
    return shared_server().train(arguments(world, save_dir, *extra), **options).check()


def losses(outcome):
    return [row["loss"] for row in outcome.logs("train_inner")]


def scores(outcome):
    return [(row["val_loss"], row["val_mIoU"], row["val_aAcc"]) for row in outcome.logs("val")]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    """An unbroken single-process run without batch shuffling."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, train(world, folder, "--curriculum", 99)


def test_image_free_training_learns_and_keeps_the_best(world, plain):
    folder, outcome = plain
    values = losses(outcome)
    assert len(values) == 12 and sum(values[-4:]) < sum(values[:4]) - 0.1
    assert values[0] == pytest.approx(math.log(len(NAMES)), abs=0.6)
    best = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    assert best["extra_state"]["best"] == max(row["val_mIoU"] for row in outcome.logs("val"))
    assert (folder / "checkpoint_last.pt").is_file()


def test_image_free_training_reads_no_image(world, tmp_path):
    """Training goes on with shards of which only the vocabulary is readable."""
    write_toy_shards(tmp_path / "data", "train", 1)
    for path in glob.glob(str(tmp_path / "data" / "train*")):
        with open(path, "w") as file:
            file.write("broken")
    outcome = shared_server().train(
        [tmp_path / "data", *arguments(world, tmp_path / "out", "--disable-validation", "--max-epoch", 1)[1:]]
    )
    assert len(losses(outcome.check())) == 6


def test_workers_draw_the_same_samples_in_every_epoch(world, plain, tmp_path):
    assert losses(train(world, tmp_path, "--curriculum", 99, "--num-workers", 2)) == losses(plain[1])


def test_two_processes_equal_one(world, plain, tmp_path):
    """Same samples per update, so the same losses; and the same scores although 7 rows do not divide by 2 ranks."""
    outcome = train(world, tmp_path, "--curriculum", 99, "--batch-size", 2, "--distributed-world-size", 2, nproc=2)
    assert losses(outcome) == pytest.approx(losses(plain[1]), abs=2e-3)
    for ours, theirs in zip(scores(outcome), scores(plain[1])):
        assert ours == pytest.approx(theirs, abs=2e-3)


def test_gradient_accumulation_equals_one_batch(world, plain, tmp_path):
    outcome = train(world, tmp_path, "--curriculum", 99, "--batch-size", 2, "--update-freq", 2)
    assert losses(outcome) == pytest.approx(losses(plain[1]), abs=2e-3)


@pytest.mark.parametrize("nproc", [1, 2])
def test_resume_in_the_middle_of_an_epoch_is_exact(world, tmp_path, nproc):
    extra = ["--batch-size", 4 // nproc, "--distributed-world-size", nproc, "--save-interval-updates", 4, "--total-num-update", 12]
    whole = train(world, tmp_path / "whole", *extra, nproc=nproc)
    train(world, tmp_path / "parts", *extra, "--max-update", 4, nproc=nproc)
    rest = train(world, tmp_path / "parts", *extra, nproc=nproc)
    assert losses(rest) == losses(whole)[4:]
    assert scores(rest)[-1] == scores(whole)[-1]


def test_supervised_training_with_every_option_people_use(world, tmp_path):
    """EMA, bf16 autocast, feature propagation, TensorBoard and offline W&B in one supervised run."""
    outcome = train(
        world,
        tmp_path / "out",
        *("--supervised", "--train-image-encoder", "--store-ema", "--ema-decay", 0.9, "--autocast", "bf16", "--resnet-iters", 2),
        *("--tensorboard-logdir", tmp_path / "board", "--wandb-project", "toy", "--clip-norm", 1.0),
        env={"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"},
    )
    row = outcome.logs("val")[-1]
    assert {"val_mIoU", "val_mIoU_propagated", "val_loss"} <= set(row)
    assert list((tmp_path / "board").glob("*/events*")) and list(tmp_path.glob("wandb/offline-run*"))
    state = torch.load(tmp_path / "out" / "checkpoint_last.pt", weights_only=True)
    assert any(key.startswith("ema") for key in state["extra_state"])


def test_early_stop(world, tmp_path):
    """A learning rate of zero never improves, so patience 1 ends the run after two validations."""
    outcome = train(world, tmp_path, "--patience", 1, "--max-epoch", 9, "--lr", 0.0)
    assert len(outcome.logs("val")) == 2 and "early stop" in outcome.text


def test_display_pass_adds_curves_and_changes_no_gradient(world, plain, tmp_path):
    outcome = train(world, tmp_path, "--curriculum", 99, "--display-pass")
    assert losses(outcome) == losses(plain[1])
    assert all("mIoU" in row for row in outcome.logs("train_inner"))


def test_a_bad_row_costs_only_itself(world, tmp_path):
    data = tmp_path / "data"
    write_toy_shards(data, "val", 3, seed=1)
    path = next(data.glob("val*.tsv"))
    lines = path.read_text().splitlines(keepends=True)
    fields = lines[1].split("\t")
    lines[1] = "\t".join([codec.b64encode(b"no picture").decode(), *fields[1:]])
    path.write_text("".join(lines))
    outcome = shared_server().train([data, *arguments(world, tmp_path / "out", "--max-epoch", 1, "--batch-size-valid", 1)[1:]]).check()
    assert outcome.logs("val")[-1]["val_bad_rows"] == 1.0
    assert "val-00000-of-00001.tsv, row 1, column image" in outcome.text


def test_class_names_of_another_language(world, tmp_path):
    """A SentencePiece model in --bpe-dir is all that other languages need."""
    names = ("красный мяч", "зелёная трава", "синее небо")
    lines = [*names, "мяч на траве", "небо над травой", " ".join(PROMPT_WORDS)] * 30
    (tmp_path / "bpe").mkdir()
    with open(tmp_path / "bpe" / "ru.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=90, minloglevel=2, hard_vocab_limit=False
        )
    write_toy_shards(tmp_path / "data", "val", 2, names=names)
    flags = arguments(world, tmp_path / "out", "--max-epoch", 1, "--bpe", "sentencepiece")[1:]
    flags[flags.index(world / "bpe")] = tmp_path / "bpe"
    outcome = shared_server().train([tmp_path / "data", *flags]).check()
    assert "val_mIoU" in outcome.logs("val")[-1]


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--class-names", "red, blue, green"], "disagree, first at class 1: 'blue' against 'green'"),
        (["--class-names", "red, zebra, blue", "--rename-classes"], "'zebra' in 'zebra' is not covered by this model's dictionary"),
        (["--valid-subset", "validation2"], "validation2"),
    ],
)
def test_mistakes_end_in_one_clear_message(world, tmp_path, extra, message):
    outcome = shared_server().train(arguments(world, tmp_path, *extra))
    assert outcome.returncode != 0 and message in outcome.text
