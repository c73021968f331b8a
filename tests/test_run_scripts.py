"""Every run script prints, under --dry-run, commands that the programs behind them accept."""

import itertools
import math
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from omegaconf import OmegaConf

import ofaseg  # noqa: F401  registers the tasks and models the commands name
from data_prep.prepare import parse_arguments as prepare_arguments
from ofaseg.cli import build_parser
from ofaseg.commands.common import parse_overrides
from ofaseg.evaluation.zero_shot_settings import load_settings
from ofaseg.models.layers.subclass_fusion import RULES
from ofaseg.subclasses.label_set import load_label_set
from ofaseg.wordpiece import WordPieceTokenizer

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for path in ROOT.glob("run_scripts/*/*.sh") if path.name != "common.sh")
OWN_FOLDER = ROOT / "run_scripts" / "ifseg" / "own_folder.sh"
MEASURING = {f"simseg/{name}.sh" for name in ("voc", "context", "coco_object", "retrieval_flickr30k", "retrieval_coco")}
MEASURING |= {"freeseg/coco_test_semseg.sh"} | {f"llm_supervision/{name}.sh" for name in ("voc", "context", "coco_object", "shapes")}
INPUTS = ("PROMPTS", "BACKBONE")
INPUTS += ("CLIP", "MOBILENET", "TEXTS", "SIMSEG", "BERT_VOCAB", "CHECKPOINT", "CHECKPOINTS", "BPE_DIR", "CAMVID", "DATA", "FOLDER")


def dry_run(script: Path, folder: Path, *flags: str, **environment: str) -> list[list[str]]:
    """The commands a script would run, started in another folder than the checkout."""
    inputs = {name: str(folder / name.lower()) for name in INPUTS} | {"OUT": str(folder / "out"), "NGPU": "0"}
    done = subprocess.run(
        [script, "--dry-run", *flags], cwd=folder, env=os.environ | inputs | environment, capture_output=True, text=True, check=True
    )
    return [shlex.split(line) for line in done.stdout.splitlines()]


def training_arguments(command: list[str]):
    parser = options.get_training_parser()
    return options.parse_args_and_arch(parser, input_args=command[1:])


def test_there_is_a_script_per_published_table():
    assert MEASURING | {"simseg/train_captions.sh", "simseg/shapes.sh"} <= {f"{path.parent.name}/{path.name}" for path in SCRIPTS}
    assert {"ade.sh", "camvid_supervised.sh", "coco_stuff.sh", "coco_unseen.sh", "shapes.sh"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_programs_accept_what_a_script_would_run(script, tmp_path):
    measures = f"{script.parent.name}/{script.name}" in MEASURING
    commands = dry_run(script, tmp_path, *(("--limit", "7") if measures else ("--log-interval", "7")))
    programs = [Path(command[0]).name for command in commands]
    assert {"fairseq-train", "env"} & set(programs) or measures
    for program, command in zip(programs, commands, strict=True):
        if program == "fairseq-train":
            assert training_arguments(command).log_interval == 7
        elif program == "ofaseg":
            args = build_parser().parse_args(command[1:])
            assert not measures or command[1] == "report" or args.limit == 7


SIMSEG = ROOT / "run_scripts" / "simseg"


@pytest.mark.parametrize("name, dataset", [("voc", "pascal_voc"), ("context", "pascal_context"), ("coco_object", "coco_object")])
def test_zero_shot_scores_have_the_settings_of_their_dataset(name, dataset, tmp_path):
    """Shards are made from ROOT when DATA has none; several GPUs share the evaluation."""
    (tmp_path / "made").mkdir()
    prepare, evaluate = dry_run(SIMSEG / f"{name}.sh", tmp_path, ROOT=str(tmp_path / "raw"), DATA="", NGPU="2", OUT=str(tmp_path / "out"))
    shards = str(tmp_path / "out" / "shards")
    read = prepare_arguments(prepare[2:])
    assert (read.dataset, read.root, read.out, read.splits) == (dataset, str(tmp_path / "raw"), shards, "val")
    assert evaluate[1:6] == ["--nproc-per-node", "2", "-m", "ofaseg.cli", "evaluate"]
    args = build_parser().parse_args(evaluate[5:])
    assert (args.checkpoint, args.shards, args.split) == (str(tmp_path / "checkpoint"), shards, "val")
    assert parse_overrides(args.override) == {"zero_shot": dataset, "bert_vocab": str(tmp_path / "bert_vocab")}
    assert load_settings(parse_overrides(args.override)["zero_shot"]).top_m == (30 if name == "context" else 10)
    for file in ("val-00000-of-00001.parquet", "vocabulary.json"):
        (tmp_path / "made" / file).write_bytes(b"")
    (alone,) = dry_run(SIMSEG / f"{name}.sh", tmp_path, DATA=str(tmp_path / "made"), BERT_VOCAB="")
    args = build_parser().parse_args(alone[1:])
    assert (args.shards, args.device, args.override) == (str(tmp_path / "made"), "cpu", [f"zero_shot={dataset}"])


LLM = ROOT / "run_scripts" / "llm_supervision"


@pytest.mark.parametrize(
    "name, dataset, top_m, classes",
    [("voc", "pascal_voc", 10, 21), ("context", "pascal_context", 60, 60), ("coco_object", "coco_object", 10, 81)],
)
def test_subclasses_have_the_published_settings(name, dataset, top_m, classes, tmp_path):
    for file in ("val-00000-of-00001.parquet", "vocabulary.json"):
        (tmp_path / file).write_bytes(b"")
    (command,) = dry_run(LLM / f"{name}.sh", tmp_path, DATA=str(tmp_path), BERT_VOCAB="", EXACT="1")
    args = build_parser().parse_args(command[1:])
    assert parse_overrides(args.override) == {"zero_shot": dataset, "exact_subclasses": True, "templates": "llm_voc13", "top_m": top_m}
    assert len(load_label_set(args.subclasses)) == classes and args.fusion == "", "the published rule is the default"
    (own,) = dry_run(
        LLM / f"{name}.sh", tmp_path, DATA=str(tmp_path), SUBCLASSES="top5.json", TOP_M="7", TEMPLATES="imagenet80", BERT_VOCAB=""
    )
    args = build_parser().parse_args(own[1:])
    assert args.subclasses == "top5.json" and parse_overrides(args.override) == {
        "zero_shot": dataset,
        "templates": "imagenet80",
        "top_m": 7,
    }


def test_every_fusion_rule_is_measured_beside_none(tmp_path):
    commands = dry_run(LLM / "shapes.sh", tmp_path, DATA=str(tmp_path), CHECKPOINTS="a.pt b.pt", BERT_VOCAB="")
    found = [build_parser().parse_args(command[1:]) for command in commands]
    rows = {(args.checkpoint, args.refine, args.fusion or "plain") for args in found[:-1]}
    assert rows == set(itertools.product(("a.pt", "b.pt"), ("none", "dense_crf"), ("plain", *RULES))) and len(found) == 25
    assert all(bool(args.subclasses) == bool(args.fusion) for args in found[:-1])
    assert len(found[-1].result) == 12 and found[-1].result[1] == f"softmax, none={tmp_path / 'out'}/seed*/none/softmax"


FUSIONER = ROOT / "run_scripts" / "fusioner"


@pytest.mark.parametrize("name, statistics, subset", [("pascal", "pascal", "all"), ("coco", "coco", "first1000")])
@pytest.mark.parametrize("gpus", [0, 4])
def test_a_fold_is_trained_as_published_and_tested(name, statistics, subset, gpus, tmp_path):
    for file in ("val-00000-of-00001.parquet", "vocabulary.json"):
        (tmp_path / file).write_bytes(b"")
    train, test = dry_run(FUSIONER / f"{name}.sh", tmp_path, "3", DATA=str(tmp_path), NGPU=str(gpus), PAIR_LISTS=str(tmp_path / "lists"))
    found = training_arguments(train)
    assert (found.benchmark, found.fold, found.test_subset, found.pixel_statistics) == (
        f"{name}{'5i' if name == 'pascal' else '20i'}",
        3,
        subset,
        statistics,
    )
    assert max(gpus, 1) * found.batch_size == 32 and found.max_epoch == 510 and found.arch == "fusioner_vit_l14"
    assert (found.lr, found.decoder_lr, found.min_lr, found.warmup_epochs) == ([1e-3], 1e-3, 2e-6, 10)
    assert (found.scheduled_weight_decay, found.final_weight_decay, found.aug_prob) == (0.01, 0.4, 0.5)
    assert (found.pairs, found.pair_lists) == ("official", str(tmp_path / "lists")) and found.templates == "fusioner32"
    args = build_parser().parse_args(test[5:] if gpus else test[1:])
    assert args.checkpoint == str(tmp_path / "out" / "checkpoint_last.pt") and args.split == "val"


def test_folds_do_not_share_their_results(tmp_path):
    outs = [training_arguments(dry_run(FUSIONER / "coco.sh", tmp_path, fold, OUT="", DATA=str(tmp_path))[-2]).save_dir for fold in "02"]
    assert outs == [str(tmp_path / "outputs" / f"fusioner_coco-fold{fold}") for fold in "02"]


FREESEG = ROOT / "run_scripts" / "freeseg"


def freeseg_runs(tmp_path, name, *flags, **environment):
    """The trainings of a script on shards that are there, each as its arguments."""
    for file in ("val-00000-of-00001.parquet", "vocabulary.json"):
        (tmp_path / file).write_bytes(b"")
    commands = dry_run(FREESEG / f"{name}.sh", tmp_path, *flags, DATA=str(tmp_path), **environment)
    return [training_arguments(command) for command in commands]


@pytest.mark.parametrize(
    "name, updates, regions, decay, tasks",
    [
        ("coco_stage1", 16_000, 64, 0.001, "semantic,instance,panoptic"),
        ("voc", 3200, 128, 0.001, "semantic"),
        ("ade", 16_000, 32, 0.0005, "semantic"),
    ],
)
def test_prompts_are_learned_as_published(name, updates, regions, decay, tasks, tmp_path):
    (found,) = freeseg_runs(tmp_path, name, *([] if name == "coco_stage1" else ["1"]), NGPU="4", BATCH="4")
    assert (found.max_update, found.samples_per_class, found.weight_decay, found.tasks) == (updates, regions, decay, tasks)
    assert (found.lr, found.momentum, found.clip_norm, found.warmup_updates, found.warmup_factor) == ([0.02], 0.9, 0.01, 100, 0.005)
    assert 4 * found.batch_size * found.update_freq[0] == 32 and found.batch_size == 4 and found.arch == "freeseg_prompt_b16"
    assert not (found.class_sorted or found.task_of_first or found.tall_crops or hasattr(found, "fill_with_mean"))


@pytest.mark.parametrize(
    "name, depth, updates, batch, rate, decay, crop",
    [
        ("coco_stage2", "r50", 60_000, 32, 1e-4, 1e-4, 640),
        ("coco_stage2", "r101c", 60_000, 32, 1.5e-4, 1.5e-4, 640),
        ("voc", "r50", 20_000, 16, 1e-4, 1e-4, 512),
        ("voc", "r101c", 20_000, 32, 2e-5, 2e-5, 512),
        ("ade", "r50", 60_000, 32, 1e-4, 1e-4, 512),
    ],
)
def test_masks_are_learned_as_published(name, depth, updates, batch, rate, decay, crop, tmp_path):
    (found,) = freeseg_runs(tmp_path, name, *([] if name == "coco_stage2" else ["2"]), NGPU="8", DEPTH=depth)
    assert (found.max_update, int(found.total_num_update), found.patch_image_size) == (updates, updates, crop)
    assert (found.lr, found.weight_decay, found.clip_norm, found.power, found.warmup_updates) == ([rate], decay, 0.01, 0.9, 0)
    assert 8 * found.batch_size * found.update_freq[0] == batch and found.arch == f"freeseg_{depth}" and found.frozen_prompts
    assert found.tasks == ("semantic" if name == "voc" else "semantic,instance,panoptic") and found.backbone_lr_scale == 0.1
    assert found.prompt_checkpoint == str(tmp_path / "prompts") and found.image_checkpoint == str(tmp_path / "backbone")


def test_the_second_stage_starts_from_the_prompts_of_the_first(tmp_path):
    prompts, masks = freeseg_runs(tmp_path, "voc", PROMPTS="")
    assert masks.prompt_checkpoint == f"{prompts.save_dir}/checkpoint_best.pt" and masks.save_dir != prompts.save_dir
    assert prompts.train_subset == masks.train_subset == "train_aug"


def test_a_batch_that_memory_cannot_hold_is_accumulated(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        dry_run(FREESEG / "ade.sh", tmp_path, BATCH="5")
    assert error.value.returncode == 2 and "BATCH=5 does not divide the 32 photos" in error.value.stderr
    (found,) = freeseg_runs(tmp_path, "ade", "2", BATCH="2", NGPU="1")
    assert (found.batch_size, found.update_freq) == (2, [16])


def test_retrieval_reads_shards_or_the_official_file(tmp_path):
    (tmp_path / "valid.parquet").write_bytes(b"")
    (command,) = dry_run(SIMSEG / "retrieval_coco.sh", tmp_path, DATA=str(tmp_path / "valid.parquet"))
    args = build_parser().parse_args(command[1:])
    assert (args.data, args.resize, args.crop) == (str(tmp_path / "valid.parquet"), 324, 288)
    prepare, command = dry_run(SIMSEG / "retrieval_flickr30k.sh", tmp_path, DATA="", ROOT="raw")
    assert prepare[2] == "flickr30k" and build_parser().parse_args(command[1:]).split == "test"


def test_raw_data_or_shards_are_asked_for(tmp_path):
    (tmp_path / "checkpoint").write_bytes(b"")
    environment = os.environ | {"CHECKPOINT": str(tmp_path / "checkpoint"), "OUT": str(tmp_path / "out"), "NGPU": "0"}
    done = subprocess.run([SIMSEG / "voc.sh"], env=environment | {"ROOT": "", "DATA": ""}, capture_output=True, text=True)
    assert done.returncode == 2 and "set DATA to shards that have it, or ROOT to the raw pascal_voc" in done.stderr


@pytest.mark.parametrize("gpus", [0, 1, 8, 32])
def test_the_captions_run_keeps_its_batch_of_4096(gpus, tmp_path):
    (command,) = dry_run(SIMSEG / "train_captions.sh", tmp_path, NGPU=str(gpus))
    arguments = training_arguments(command)
    assert max(gpus, 1) * arguments.batch_size == 4096 and arguments.update_freq == [1] and arguments.sub_batch_size == 128
    assert (arguments.adam_betas, arguments.adam_eps, arguments.weight_decay, arguments.max_epoch) == ("(0.9, 0.98)", 1e-6, 0.2, 20)
    assert not arguments.no_decay_vectors and arguments.image_size == 224 and arguments.arch == "simseg_vit_s"


def test_the_captions_rate_is_the_published_one(tmp_path):
    """Digest of the published schedule: lr * s / W for s < W, else lr * (m + (1 - m) * 0.5 * (1 + cos(pi * p))), W 2.5 %, m 0.1."""
    (command,) = dry_run(SIMSEG / "train_captions.sh", tmp_path, LR="3e-4")
    arguments = training_arguments(command)
    options_ = {"_name": "cosine_warmup_ratio", "lr": arguments.lr, "max_update": 0, "max_epoch": 0, "update_freq": [1]}
    options_ |= {name: getattr(arguments, name) for name in ("warmup_ratio", "warmup_init_lr", "min_lr")} | {"total_num_update": 1000}
    optimizer = build_optimizer(OmegaConf.create({"_name": "torch_adamw", "lr": [1.0]}), [torch.nn.Parameter(torch.ones(1))])
    schedule = build_lr_scheduler(OmegaConf.create(options_ | {"skip_remainder_batch": False}), optimizer)
    for step in (0, 1, 24, 25, 26, 500, 999):
        falling = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 25) / 975))
        assert schedule.rate(step) == pytest.approx(3e-4 * (step / 25 if step < 25 else falling)), step


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        dry_run(SIMSEG / "train_captions.sh", tmp_path, NGPU="3")
    assert error.value.returncode == 2 and "cannot be shared by 3" in error.value.stderr


def test_the_drawn_world_trains_on_captions_and_measures(tmp_path):
    train, evaluate = dry_run(SIMSEG / "shapes.sh", tmp_path, "--max-update", "3", SEED="5", DATA=str(tmp_path), NGPU="0")[-2:]
    arguments = training_arguments(train)
    assert (arguments.seed, arguments.max_update, arguments.templates, arguments.arch) == (5, 3, "name", "simseg_nano")
    assert len(WordPieceTokenizer(arguments.bert_vocab)) == 150
    args = build_parser().parse_args(evaluate[1:])
    assert args.checkpoint == str(tmp_path / "out" / "checkpoint_last.pt") and args.out == str(tmp_path / "out" / "test")


@pytest.mark.parametrize("name", ["coco_unseen", "ade", "coco_stuff"])
@pytest.mark.parametrize("gpus", [1, 2, 4, 8, 16])
def test_published_runs_keep_their_batch_of_16(name, gpus, tmp_path):
    (command,) = dry_run(ROOT / "run_scripts" / "ifseg" / f"{name}.sh", tmp_path, NGPU=str(gpus))
    arguments = training_arguments(command)
    assert gpus * arguments.batch_size * arguments.update_freq[0] == 16 and arguments.lr == [5e-5]
    assert arguments.arch == "segofa_base" and not arguments.supervised


def own_folder(tmp_path, *flags, **environment):
    """Program and first argument's name -> command."""
    commands = dry_run(OWN_FOLDER, tmp_path, *flags, **environment)
    return {f"{Path(command[0]).name} {Path(command[1]).name}": command for command in commands}


def test_an_own_folder_is_trained_on_unless_there_is_a_pretrained_model(tmp_path):
    layout = dict(IMAGES="photos", CLASS_NAMES="c.txt", PREPARE_FLAGS="--val-fraction 0.1")
    commands = own_folder(tmp_path, CHECKPOINT="", BPE_DIR="", DATA="", **layout)
    assert list(commands)[-3:] == ["ofaseg evaluate", "ofaseg browse", "ofaseg report"]
    convert, out = commands["python convert_folder.py"], tmp_path / "out"
    assert convert[2:8] == ["--root", str(tmp_path / "folder"), "--out", str(out / "shards"), "--run", str(out)]
    assert convert[8:12] == ["--need", "val", "--need", "train"]
    assert convert[12:] == ["--images", "photos", "--class-names", "c.txt", "--val-fraction", "0.1"]
    assert commands["ofaseg doctor"][2:] == [str(out / "shards")]
    words = str(tmp_path / "out" / "words")
    assert commands["python word_dictionary.py"][-1] == words
    arguments = training_arguments(next(command for name, command in commands.items() if name.startswith("fairseq-train")))
    assert arguments.supervised and arguments.arch == "segofa_nano" and arguments.bpe_dir == words and not arguments.pretrained


@pytest.mark.parametrize("supervised", ["0", "1"])
def test_an_own_folder_with_a_pretrained_model(tmp_path, supervised):
    commands = own_folder(tmp_path, SUPERVISED=supervised, ARCH="segofa_tiny")
    arguments = training_arguments(next(command for name, command in commands.items() if name.startswith("fairseq-train")))
    assert arguments.supervised == (supervised == "1") and arguments.arch == "segofa_tiny"
    assert arguments.pretrained == str(tmp_path / "checkpoint") and arguments.bpe_dir == str(tmp_path / "bpe_dir")
    assert "python word_dictionary.py" not in commands
    assert ("train" in commands["python convert_folder.py"]) == (supervised == "1")  # image-free, the photos only measure


def test_runs_of_two_folders_do_not_share_their_results(tmp_path):
    outs = [own_folder(tmp_path, OUT="", FOLDER=str(tmp_path / name) + "/")["ofaseg report"][2] for name in ("cats", "my dogs")]
    assert outs == [str(tmp_path / "outputs" / f"ifseg_own_folder_{name}") for name in ("cats", "my dogs")]


def test_a_number_of_gpus_that_would_change_the_batch_is_refused(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        dry_run(ROOT / "run_scripts" / "ifseg" / "ade.sh", tmp_path, NGPU="3")
    assert error.value.returncode == 2 and "cannot be shared by 3" in error.value.stderr


def test_checkpoints_of_one_name_would_hide_each_other(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        dry_run(ROOT / "run_scripts" / "ifseg" / "shapes_seeds.sh", tmp_path, CHECKPOINTS="a/m.safetensors b/m.safetensors")
    assert error.value.returncode == 2 and "different file names" in error.value.stderr


def test_a_missing_input_is_named(tmp_path):
    script = ROOT / "run_scripts" / "ifseg" / "ade.sh"
    done = subprocess.run([script], env=os.environ | {"BPE_DIR": "", "DATA": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2 and "BPE_DIR" in done.stderr
