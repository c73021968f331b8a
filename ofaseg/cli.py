"""The console command `ofaseg`: evaluate, retrieval, probe, fewshot, predict, report, doctor, browse, subclasses."""

import argparse
import importlib
from typing import Optional, Sequence

from ofaseg.commands.common import run_command

COMMANDS = {
    "evaluate": "scores of a checkpoint on a split of shards",
    "retrieval": "scores of a dual encoder finding captions of photos and photos of captions",
    "probe": "a linear classifier on a frozen image tower",
    "fewshot": "scores of held-out classes, one class at a time: folds of PASCAL-5i and COCO-20i, and of your own",
    "predict": "segment photos into named classes, or draw where phrases are",
    "doctor": "faults of data, class lists, checkpoints and configurations, before they cost a run",
    "report": "one HTML page from evaluations and training logs",
    "browse": "a gallery of the rows of shards",
    "subclasses": "finer names of classes: asked of a language model, cleaned, filtered, checked",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser with one sub-command per entry of COMMANDS."""
    parser = argparse.ArgumentParser(prog="ofaseg", description="Segmentation with class names as words, on fairseq.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"ofaseg.commands.{name}")
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs a sub-command and returns its exit status."""
    args = build_parser().parse_args(argv)
    return run_command(args.run, args)


if __name__ == "__main__":
    raise SystemExit(main())
