"""``ofaseg-hydra-train``: fairseq's YAML-configured training with this plug-in's parts known from the start.

    ofaseg-hydra-train --config-name ifseg_shapes task.data=shards checkpoint.save_dir=outputs/shapes

Beside ``fairseq-hydra-train`` it

* imports the plug-in before hydra composes, so that a YAML file can name our tasks, models and criteria in its
  ``defaults``, and so that the patches of ``ofaseg/compat.py`` are in place before processes are launched;
* offers named architectures (``model: segofa_nano``) as well;
* looks for ``--config-name`` in ``ofaseg/config`` unless ``--config-dir`` is given;
* stays in the current folder, so relative paths mean what they say, and writes hydra's files into the save folder.
"""

import argparse
import sys
from pathlib import Path
from typing import Optional, Sequence

import fairseq.models
from fairseq_cli import hydra_train
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

CONFIG_DIR = Path(__file__).resolve().parent / "config"

# what hydra does unless the command line says otherwise
HYDRA_DEFAULTS = {"hydra.job.chdir": "false", "hydra.run.dir": "${checkpoint.save_dir}"}

MODEL_PACKAGE = "ofaseg.models."


def register_paths() -> None:
    """``${ofaseg:assets/shapes}`` in a YAML file: a path inside the installed package."""
    OmegaConf.register_new_resolver("ofaseg", lambda path: str(CONFIG_DIR.parent / path), replace=True)


def store_architectures() -> list[str]:
    """Makes every named architecture of this toolkit an entry of hydra's ``model`` group; returns their names.

    fairseq applies architecture functions to command-line options only; here their values become the entry's values.
    """
    names = []
    for name, model in fairseq.models.ARCH_MODEL_NAME_REGISTRY.items():
        if name == model or not fairseq.models.ARCH_MODEL_REGISTRY[name].__module__.startswith(MODEL_PACKAGE):
            continue
        sizes = argparse.Namespace()
        fairseq.models.ARCH_CONFIG_REGISTRY[name](sizes)
        node = OmegaConf.structured(fairseq.models.MODEL_DATACLASS_REGISTRY[model]())
        node = OmegaConf.merge(node, {**vars(sizes), "_name": model})
        ConfigStore.instance().store(name=name, group="model", node=node, provider="ofaseg")
        names.append(name)
    return names


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line with this entry point's defaults added.

    Raises:
        SystemExit: no ``--config-name``, or an unknown one; the message lists those that are here.
    """
    arguments = list(arguments)
    parsed = get_args_parser().parse_args(arguments)
    if parsed.config_name is None and not (parsed.help or parsed.hydra_help):
        raise SystemExit(f"ofaseg-hydra-train: give --config-name; in {CONFIG_DIR}: {', '.join(_config_names())}")
    here = not (parsed.config_dir or parsed.config_path or parsed.config_name is None)
    if here and parsed.config_name.removesuffix(".yaml") not in _config_names():
        known = f"in {CONFIG_DIR}: {', '.join(_config_names())}; others need --config-dir"
        raise SystemExit(f"ofaseg-hydra-train: no configuration {parsed.config_name!r}; {known}")
    options = [] if parsed.config_dir or parsed.config_path else ["--config-dir", str(CONFIG_DIR)]
    given = {override.lstrip("+~").partition("=")[0] for override in parsed.overrides}
    added = [f"{key}={value}" for key, value in HYDRA_DEFAULTS.items() if key not in given]
    # hydra's parser wants all overrides in one place
    place = arguments.index(parsed.overrides[0]) if parsed.overrides else len(arguments)
    return [*options, *arguments[:place], *added, *arguments[place:]]


def _config_names() -> list[str]:
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Console entry point; arguments default to the command line's."""
    sys.argv[1:] = hydra_arguments(sys.argv[1:] if arguments is None else arguments)
    register_paths()
    store_architectures()
    hydra_train.cli_main()


if __name__ == "__main__":
    main()
