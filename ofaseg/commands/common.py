"""What the commands share: device and processes, loading a checkpoint, exit status of user errors."""

import argparse
import logging
import os
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import Callable, Iterable, Optional, Sequence

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options about the model, the same in every command that runs one."""
    parser.add_argument("--class-names", default="", help="class names: a file with one per line, or a comma-separated list")
    parser.add_argument("--bpe-dir", default="", help="tokenizer folder, when it is not where the checkpoint was trained")
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU when there is one)")
    parser.add_argument(
        "--resnet-topk", type=int, default=None, help="neighbours in feature propagation (default: the checkpoint's setting)"
    )
    parser.add_argument("--resnet-iters", type=int, default=None, help="rounds of feature propagation, 0 = off (default: the checkpoint's)")
    parser.add_argument(
        "--refine", default=None, help="refine maps by colour: none, dense_crf, pydensecrf, pamr, threshold (default: the checkpoint's)"
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--subclasses", default="", help="label set, JSON {class: [finer names]}: class maps are made from these names")
    parser.add_argument(
        "--fusion", default="", help="with --subclasses: softmax, mean, superclass_mean, max or logsumexp (default: as the task's)"
    )
    add_override_arguments(parser)


def model_overrides(args) -> dict:
    """What the options of `add_model_arguments` change in the checkpoint's task.

    Raises:
        ValueError: an --override without '=', or --fusion alone.
    """
    overrides = parse_overrides(args.override)
    if args.fusion and not (args.subclasses or overrides.get("subclasses")):
        raise ValueError("--fusion says how finer names become a class map; give them with --subclasses FILE")
    given = {"bpe_dir": args.bpe_dir, "subclasses": args.subclasses, "fusion": args.fusion}
    return overrides | {key: value for key, value in given.items() if value}


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings of the checkpoint to change, and tracebacks: in every command that loads a model."""
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the checkpoint's task, such as patch_image_size=256",
    )
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def parse_overrides(pairs: Sequence[str]) -> dict:
    """['a=1', 'b=x'] -> {'a': 1, 'b': 'x'}; numbers and true/false are read as such.

    Raises:
        ValueError: a pair without '='.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--override {pair!r}: write KEY=VALUE")
        values[key.strip()] = _literal(text.strip())
    return values


def _literal(text: str):
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def post_process_changes(args) -> dict:
    """The fields of `PostProcess` that the command line sets."""
    changes = {"resnet_topk": args.resnet_topk, "resnet_iters": args.resnet_iters, "flip_average": args.flip or None, "refine": args.refine}
    return {key: value for key, value in changes.items() if value is not None}


def parse_tasks(text: str, possible: Sequence[str]) -> tuple[str, ...]:
    """'semantic, panoptic' -> its parts, each of what a checkpoint's model can make.

    Raises:
        ValueError: others, or none.
    """
    tasks = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not tasks or not set(tasks) <= set(possible):
        advice = f"give one or more of {','.join(possible)}" if len(possible) > 1 else f"this model makes class maps, {possible[0]}, alone"
        raise ValueError(f"--tasks {text!r}: {advice}")
    return tasks


def choose_device(name: str = "") -> torch.device:
    """The named device, or this process's GPU, or the CPU.

    Raises:
        ValueError: the name is no device of this machine.
    """
    if not name:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r}: not a device; say cpu, cuda or cuda:<number>") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name!r}: torch finds no GPU here; say cpu")
    return device


@contextmanager
def process_group(device: torch.device):
    """Joins the other processes when started by torchrun (WORLD_SIZE above 1), and leaves them at the end. Yields the rank."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield dist.get_rank() if dist.is_initialized() else 0
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def on_ranks(args, work: Callable[..., int]) -> int:
    """`work(args, device, rank)` on the device that --device names, together with the other processes; its exit status."""
    device = choose_device(args.device)
    with process_group(device) as rank:
        return work(args, device, rank)


def main(module: ModuleType, prog: str, argv: Optional[Sequence[str]] = None) -> int:
    """Runs one command module as a program of its own."""
    parser = argparse.ArgumentParser(prog=prog, description=module.__doc__)
    module.add_arguments(parser)
    return run_command(module.run, parser.parse_args(argv))


def _set_up_logging() -> None:
    """Messages from INFO on, on stderr; a library that was imported before may have asked for more, in its own form."""
    logging.basicConfig(stream=sys.stderr)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in root.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))


def run_command(run, args) -> int:
    """Exit status of a command; an error of the user's making, or an absent optional package, is one line on stderr and status 2."""
    _set_up_logging()
    try:
        return run(args)
    except (ValueError, OSError, ImportError) as error:
        if getattr(args, "debug", False):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def distinct(names: Iterable[str]) -> list[str]:
    """The names in their order; one that stands already, in any case of letters, gets a number: a, a-2, a-3."""
    result, taken = [], set()
    for first in names:
        name, number = first, 1
        while name.lower() in taken:
            number += 1
            name = f"{first}-{number}"
        taken.add(name.lower())
        result.append(name)
    return result
