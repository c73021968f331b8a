"""Jobs for a forked child that are not a whole training (see forked.py beside this file)."""

import argparse
import functools
import os
import sys

import numpy as np
import torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.distributed import utils
from omegaconf import OmegaConf

from ofaseg import compat

compat.apply()


def patches_in_place() -> list:
    return list(compat.apply())


def forgotten_subsets(data: str) -> list:
    """Validation files that fairseq finds in what `--data` names."""
    from fairseq.data import data_utils

    return sorted(data_utils._find_extra_valid_paths(data))


def report_rank(cfg) -> None:
    """A training that only writes which rank it was and that its collectives work."""
    total = torch.tensor([utils.get_global_rank() + 1.0])
    utils.all_reduce(total, utils.get_global_group())
    facts = [utils.get_global_world_size(), int(total), cfg.distributed_training.distributed_backend, "toy_plugin" in sys.modules]
    with open(os.path.join(cfg.checkpoint.save_dir, f"rank{utils.get_global_rank()}"), "w") as file:
        file.write(" ".join(map(str, facts)))


def spawn_two(folder: str, user_dir: str) -> None:
    """``--distributed-world-size 2`` without a launcher; children are forked here, for fresh ones import fairseq for seconds."""
    torch.multiprocessing.spawn = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    cfg = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(FairseqConfig()), resolve=True, enum_to_str=True))
    cfg.common.cpu, cfg.common.user_dir, cfg.model = True, user_dir, None
    cfg.distributed_training.distributed_world_size = 2
    cfg.checkpoint.save_dir = folder
    utils.call_main(cfg, report_rank)


def load_legacy_checkpoint(path: str) -> list:
    """A file as old fairseq wrote it, through fairseq's own loader: arguments in a Namespace, numpy values beside them."""
    extra = {"best": np.float64(0.5), "count": np.int64(3), "curve": np.ones(2, dtype=np.float32)}
    torch.save({"args": argparse.Namespace(arch="old", data="x"), "model": {}, "extra_state": extra}, path)
    state = torch.load(path)
    return [state["args"].arch, float(state["extra_state"]["best"]), state["extra_state"]["curve"].tolist()]


def load_foreign_object(path: str) -> None:
    """A file with an object of another class: must be refused with and without the patches."""
    torch.save({"model": {}, "cfg": compat.UnknownObject()}, path)
    torch.load(path)


def hydra_train(arguments: list) -> None:
    """``ofaseg-hydra-train`` with the toy plug-in's parts known too."""
    import toy_plugin  # noqa: F401

    from ofaseg.hydra_train import main

    main(arguments)


def copy_that_breaks_off(folder):
    """What stands in a file after a copy onto it that broke off, and after one that did not."""
    import os
    import shutil
    from unittest import mock

    from fairseq.file_io import PathManager

    os.makedirs(folder)
    source, target = os.path.join(folder, "source"), os.path.join(folder, "target")
    for path, text in ((source, "new"), (target, "old")):
        with open(path, "w") as file:
            file.write(text)

    def half(source, target):
        with open(target, "w") as file:
            file.write("ne")
        raise KeyboardInterrupt

    contents = []
    with mock.patch.object(shutil, "copyfile", half):
        try:
            PathManager.copy(source, target, overwrite=True)
        except KeyboardInterrupt:
            with open(target) as file:
                contents.append(file.read())
    PathManager.copy(source, target, overwrite=True)
    with open(target) as file:
        contents.append(file.read())
    return contents
