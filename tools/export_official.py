"""A checkpoint in the layout of its method's official code: `tools/export_official.py CHECKPOINT OUT [--override clip_checkpoint=FILE]`.

Fusioner (615 entries with ViT-L/14, 471 with ViT-B: the frozen towers are written too), SimSeg and FreeSeg.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ofaseg.checkpoints import freeseg, fusioner, load_model, simseg  # noqa: E402
from ofaseg.commands import common  # noqa: E402
from ofaseg.models.freeseg import FreeSeg  # noqa: E402
from ofaseg.models.fusioner import Fusioner  # noqa: E402
from ofaseg.models.simseg import SimSeg  # noqa: E402

EXPORTERS = {Fusioner: fusioner.export_official, SimSeg: simseg.export_official, FreeSeg: freeseg.export_official}
"""Model -> what writes (model, path) in the official layout."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint of fairseq-train, or a model exported as safetensors")
    parser.add_argument("out", help="file to write, as the official code reads it (.pt, .pth)")
    parser.add_argument("--class-names", default="", help="class names, for a checkpoint that does not tell its own")
    common.add_override_arguments(parser)


def run(args) -> int:
    """Raises CheckpointError: a file that cannot be used, another method, or a Fusioner whose towers are not CLIP's."""
    model, _ = load_model(args.checkpoint, class_names=args.class_names or None, overrides=common.parse_overrides(args.override))
    export = EXPORTERS.get(type(model))
    if export is None:
        known = ", ".join(kind.__name__ for kind in EXPORTERS)
        raise ValueError(f"{args.checkpoint}: a {type(model).__name__}; official layouts are written of {known}")
    export(model, args.out)
    print(f"{args.out}: written, {Path(args.out).stat().st_size / 1e6:.1f} MB")
    return 0


def main(argv=None) -> int:
    return common.main(sys.modules[__name__], "export_official", argv)


if __name__ == "__main__":
    sys.exit(main())
