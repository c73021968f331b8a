"""Every run script prints, under --dry-run, commands that the programs behind them accept."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from fairseq import options

import ofaseg  # noqa: F401  registers the tasks and models the commands name
from ofaseg.cli import build_parser

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for path in ROOT.glob("run_scripts/*/*.sh") if path.name != "common.sh")
OWN_FOLDER = ROOT / "run_scripts" / "ifseg" / "own_folder.sh"
INPUTS = ("CHECKPOINT", "CHECKPOINTS", "BPE_DIR", "CAMVID", "DATA", "FOLDER")


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
    assert {"ade.sh", "camvid_supervised.sh", "coco_stuff.sh", "coco_unseen.sh", "shapes.sh"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_programs_accept_what_a_script_would_run(script, tmp_path):
    commands = dry_run(script, tmp_path, "--log-interval", "7")
    programs = [Path(command[0]).name for command in commands]
    assert "fairseq-train" in programs or "env" in programs
    for program, command in zip(programs, commands, strict=True):
        if program == "fairseq-train":
            assert training_arguments(command).log_interval == 7
        elif program == "ofaseg":
            build_parser().parse_args(command[1:])


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
