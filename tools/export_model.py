"""A checkpoint of fairseq-train as safetensors + JSON: `tools/export_model.py CHECKPOINT OUT.safetensors [--half] [--command TEXT]`.

Word pieces, templates and label sets that the model needs are copied beside it.
"""

import argparse
import sys
from pathlib import Path

import torch

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ofaseg.checkpoints import CheckpointError, export_safetensors, load_dual_encoder, load_model, load_state  # noqa: E402
from ofaseg.checkpoints.export import copy_companions  # noqa: E402


def export(checkpoint: str, out: str, half: bool, command: str) -> dict:
    """Writes `out`, its JSON and the files it needs; returns the JSON's content. Raises CheckpointError for a file that cannot be used."""
    configuration = load_state(checkpoint)["cfg"]
    model, vocabulary, task = _model_and_classes(checkpoint)
    notes = {"training": {"seed": configuration["common"]["seed"], "command": command}}
    dtype = torch.float16 if half else None
    about = export_safetensors(model, configuration, out, vocabulary=vocabulary, dtype=dtype, notes=notes)
    for copy in copy_companions(task.cfg, Path(out).parent):
        print(f"{copy}: copied, the model needs it beside itself")
    return about


def _model_and_classes(checkpoint: str):
    """(model, vocabulary, task); the vocabulary is None for towers that were trained without classes."""
    try:
        model, task = load_model(checkpoint)
        return model, task.vocabulary, task
    except CheckpointError as error:
        try:
            model, task = load_dual_encoder(checkpoint)
        except CheckpointError:
            raise error from None
        return model, None, task


def main(argv=None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="export_model", description="Export a checkpoint as safetensors and JSON.")
    parser.add_argument("checkpoint")
    parser.add_argument("out", help="file to write, ending in .safetensors")
    parser.add_argument("--half", action="store_true", help="store weights in half precision")
    parser.add_argument("--command", default="", help="how the checkpoint was made, for the JSON")
    arguments = parser.parse_args(argv)
    try:
        about = export(arguments.checkpoint, arguments.out, arguments.half, arguments.command)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: sha256 {about['weights_sha256']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
