"""Checks what a run reads, before it runs: shards, raw folders, class lists, checkpoints, run folders, configurations.

Every image and label map is decoded. Exit status: 0 when no error was found, 1 when there are errors, 2 for a wrong command line.
"""

import argparse
import json
import os
import sys

from data_prep.label_values import ignore_values
from ofaseg.atomic import atomic_write
from ofaseg.doctor.examine import examine
from ofaseg.doctor.findings import SEVERITIES, Findings
from ofaseg.doctor.labels import Conventions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", help="what to check; the kind of each path is found out")
    parser.add_argument("--json", default="", metavar="FILE", help="write all findings as JSON, - for standard output")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode samples (default: all cores)")
    parser.add_argument("--max-findings", type=int, default=1000, help="findings kept per code (default: 1000); all are counted")
    parser.add_argument("--label-offset", type=int, default=0, help="raw folders: stored value of the first class (default: 0)")
    ignored = "raw folders: stored values of pixels without a label (default: 255)"
    parser.add_argument("--ignore", type=ignore_values, default=(), metavar="V[,V]", help=ignored)
    parser.add_argument("--image-ending", default="", metavar="TEXT", help="raw folders: end of all photos' stems, _leftImg8bit")
    parser.add_argument("--label-ending", default="", metavar="TEXT", help="raw folders: end of all label maps' stems, _mask")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def run(args) -> int:
    if args.workers < 1 or args.max_findings < 1:
        raise ValueError(f"--workers {args.workers} and --max-findings {args.max_findings} must be at least 1")
    if not 0 <= args.label_offset <= 65535:
        raise ValueError(f"--label-offset {args.label_offset} is outside 0..65535; give the stored value of the first class")
    conventions = Conventions(args.label_offset, args.ignore, args.image_ending, args.label_ending)
    findings = examine(args.paths, args.workers, args.max_findings, args.quiet, conventions)
    text = json.dumps(findings.to_json(args.paths), indent=1, ensure_ascii=False, allow_nan=False)
    if args.json == "-":
        print(text)
    else:
        print(summary(findings))
    if args.json not in ("", "-"):
        with atomic_write(args.json, "w") as file:
            file.write(text + "\n")
    sys.stdout.flush()
    return 1 if findings.by_severity()["error"] else 0


def summary(findings: Findings) -> str:
    """A line per kind of finding, most severe first, and the counts."""
    lines = []
    for first, more in findings.grouped():
        lines.append(f"{first}" + (f" (and {more} more like it)" if more else ""))
    counts = findings.by_severity()
    told = ", ".join(f"{counts[severity]} {severity}{'s' if counts[severity] != 1 else ''}" for severity in SEVERITIES)
    return "\n".join([*lines, f"{findings.samples} samples looked at: {told}"])
