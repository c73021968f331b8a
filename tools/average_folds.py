"""The mean over the folds of a benchmark: `tools/average_folds.py FOLD0/fewshot.json FOLD1/fewshot.json ... [--out FILE.json]`."""

import argparse
import json
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ofaseg.commands.common import run_command  # noqa: E402
from ofaseg.evaluation import report  # noqa: E402
from ofaseg.evaluation.few_shot import mean_over_folds  # noqa: E402


def average(paths: list[str]) -> dict:
    """`mean_over_folds` of files that `ofaseg fewshot --out` wrote.

    Raises:
        ValueError: a file is missing or holds no such scores; a class stands in two folds.
    """
    folds = []
    for path in paths:
        try:
            scores = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); give fewshot.json of `ofaseg fewshot --out`") from error
        if not isinstance(scores, dict) or "FB_IoU" not in scores:
            raise ValueError(f"{path}: no scores of `ofaseg fewshot`")
        folds.append(scores)
    return mean_over_folds(folds)


def run(arguments) -> int:
    """Prints the table, writes the JSON where asked for."""
    scores = average(arguments.folds)
    print(report.few_shot_class_table(scores))
    per_fold = ", ".join(report.percent(value) for value in scores["mIoU_per_fold"])
    print(f"mIoU {report.percent(scores['mIoU'])} (folds: {per_fold}), FB-IoU {report.percent(scores['FB_IoU'])}")
    if arguments.out:
        report.write_json(Path(arguments.out), scores)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="average_folds", description=__doc__)
    parser.add_argument("folds", nargs="+", help="fewshot.json of each fold")
    parser.add_argument("--out", default="", help="JSON file to write")
    return run_command(run, parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
