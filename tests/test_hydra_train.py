"""The YAML-configured entry point: its command line, its named architectures, its configuration files."""

import argparse
import os
import shlex
import subprocess

import pytest
from fairseq import options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_CONFIG_REGISTRY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ofaseg.hydra_train import CONFIG_DIR, hydra_arguments, register_paths, store_architectures
from tests.integration.forked import ROOT, shared_server

# the argument parser's bookkeeping, and what command lines name in another way
ONLY_IN_FLAGS = {"_name", "no_seed_provided", "arch"}
CONFIGS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


def composed(name, *overrides):
    """The configuration as fairseq's entry point sees it, interpolations resolved."""
    register_paths()
    store_architectures()
    hydra_init(name)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.1"):  # fairseq refuses the behaviour of 1.2
        cfg = compose(config_name=name, overrides=list(overrides))
    add_defaults(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_defaults_of_the_command_line():
    added = ["hydra.job.chdir=false", "hydra.run.dir=${checkpoint.save_dir}"]
    ours = ["--config-name", "ifseg_shapes"]
    assert hydra_arguments(ours) == ["--config-dir", str(CONFIG_DIR), *ours, *added]
    assert hydra_arguments(["-cn", "x", "-cd", "y", "a.b=1", "--cfg", "job"]) == ["-cn", "x", "-cd", "y", *added, "a.b=1", "--cfg", "job"]
    given = ["--config-dir", "y", "--config-name", "x", "hydra.run.dir=z", "+hydra.job.chdir=true"]
    assert hydra_arguments(given) == given


def test_missing_config_name_lists_those_here():
    with pytest.raises(SystemExit, match="give --config-name.*ifseg_shapes"):
        hydra_arguments(["task.data=x"])
    with pytest.raises(SystemExit, match="no configuration 'nix'; in .*ifseg_shapes; others need --config-dir"):
        hydra_arguments(["--config-name", "nix", "task.data=x"])


@pytest.mark.parametrize("architecture", ["segofa_nano", "segofa_tiny", "segofa_base"])
def test_named_architecture_has_the_sizes_of_the_command_line(architecture):
    assert architecture in store_architectures()
    model = composed("ifseg_shapes", "task.data=x", f"model={architecture}", "model.artificial_noise=0.5").model
    sizes = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[architecture](sizes)
    assert {key: model[key] for key in vars(sizes)} == vars(sizes)
    assert model._name == "segofa" and model.artificial_noise == 0.5


@pytest.mark.parametrize("name", CONFIGS)
def test_published_configs_are_complete(name):
    """Every group is chosen, every shared size agrees between task and model."""
    cfg = composed(name, "task.data=x")
    for group in ("task", "model", "criterion", "optimizer", "lr_scheduler"):
        assert cfg[group] is not None and cfg[group]["_name"], group
    for size in ("patch_image_size", "num_bins", "code_dict_size", "max_source_positions"):
        assert cfg.task[size] == cfg.model[size], size
    assert cfg.dataset.required_batch_size_multiple == 1


def test_yaml_and_run_script_give_the_same_configuration(tmp_path):
    """ifseg_shapes.yaml against the fairseq-train command of run_scripts/ifseg/shapes.sh."""
    environment = {**os.environ, "OUT": "outputs/ifseg_shapes", "DATA": str(tmp_path), "NGPU": "0"}
    (tmp_path / "vocabulary.json").touch()  # the shards are there already
    script = [str(ROOT / "run_scripts" / "ifseg" / "shapes.sh"), "--dry-run"]
    printed = subprocess.run(["bash", *script], env=environment, capture_output=True, text=True, check=True).stdout
    arguments = shlex.split(printed.splitlines()[-1])[1:]
    parser = options.get_training_parser()
    from_flags = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))
    from_yaml = composed("ifseg_shapes", f"task.data={tmp_path}")
    for group in ("task", "model", "criterion", "optimizer", "lr_scheduler", "optimization", "dataset", "checkpoint"):
        flags, yaml = (OmegaConf.to_container(cfg[group], resolve=True, enum_to_str=True) for cfg in (from_flags, from_yaml))
        different = {key: (flags[key], yaml.get(key)) for key in flags if flags[key] != yaml.get(key) and key not in ONLY_IN_FLAGS}
        assert not different, f"{group}: (script, YAML) {different}"


@pytest.mark.slow
def test_unknown_option_is_an_error():
    with pytest.raises(Exception, match="no_such_option"):
        composed("ifseg_shapes", "task.data=x", "task.no_such_option=1")


@pytest.mark.slow
def test_trains_the_toy_task(tmp_path):
    """A whole run through hydra in the current folder: our optimizer and schedule, hydra's files in the save folder."""
    (tmp_path / "toy.yaml").write_text(
        "defaults: [{task: toy_regression}, {model: toy_regression}, {criterion: toy_mse}, {optimizer: torch_adamw},"
        " {lr_scheduler: cosine_warmup_ratio}, _self_]\n"
        "common: {cpu: true, no_progress_bar: true, log_format: json, log_interval: 1}\n"
        "task: {data: .}\nmodel: {toy_width: 3}\ncriterion: {_name: toy_mse}\n"
        "optimizer: {weight_decay: 0.1}\nlr_scheduler: {warmup_ratio: 0.5}\n"
        "dataset: {batch_size: 2, disable_validation: true}\n"
        "optimization: {max_epoch: 1, lr: [0.02]}\n"
        "checkpoint: {save_dir: saved}\n"
    )
    arguments = ["--config-dir", str(tmp_path), "--config-name", "toy"]
    outcome = shared_server(OFASEG_NO_COMPAT="1").call(
        "tests.integration.toy_jobs:hydra_train", arguments, env={"OFASEG_NO_COMPAT": ""}, cwd=tmp_path
    )
    assert "0.02" in outcome.check().text
    assert (tmp_path / "saved" / "checkpoint_last.pt").is_file() and (tmp_path / "saved" / ".hydra" / "config.yaml").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "toy.yaml"]
