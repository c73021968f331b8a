"""Builds one self-contained HTML page from a folder of evaluations (scores.json) and training logs (JSON lines)."""

import argparse
from glob import glob
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image

from ofaseg.evaluation import charts, report
from ofaseg.evaluation.html_report import Example, Result, html_report, training_charts
from ofaseg.evaluation.pictures import read_index_png
from ofaseg.evaluation.training_log import TrainingLog, read_training_log
from ofaseg.vocabulary import ClassVocabulary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", help="folder searched for scores.json files (from `evaluate --out`) and *.log / *.jsonl training logs")
    parser.add_argument(
        "--result",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="evaluation to show, main one first (default: all); FOLDER may be a pattern such as 'run*/test': the seeds of one "
        "result, shown as mean ± standard deviation",
    )
    parser.add_argument("--log", action="append", default=[], metavar="NAME=FILE", help="training log to draw (default: all)")
    parser.add_argument("--title", default="Segmentation report", help="heading of the page")
    parser.add_argument("--notes", default="", help="text under the heading, or a text file")
    parser.add_argument("--details", default="", help="text folded away at the end (commands, machine), or a text file")
    parser.add_argument("--examples", type=int, default=8, help="photos shown at most")
    parser.add_argument("--out", default="", help="the page (default: RUN_DIR/report.html)")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def run(args) -> int:
    root = Path(args.run_dir)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    folders = [_named(text, "--result") for text in args.result] or [("", [path.parent]) for path in sorted(root.rglob("scores.json"))]
    logs = [read_training_log(path, name) for name, path in _log_files(args, root)]
    logs = [log for log in logs if log]
    if not folders and not logs:
        raise ValueError(f"{root}: holds neither scores.json nor a training log; run `ofaseg evaluate ... --out {root}/evaluation` first")
    results = [_read_result(name, runs) for name, runs in folders]
    vocabulary = _vocabulary(results, folders)
    examples = read_examples([(result.name, runs[0]) for result, (_, runs) in zip(results, folders)], args.examples)
    out = Path(args.out) if args.out else root / "report.html"
    page = html_report(args.title, results, vocabulary, examples, logs, _text(args.notes), _text(args.details))
    report.write_text(out, page)
    written = [out, *_write_tables(out.parent, results), *_write_curves(out.parent, logs)]
    if results:
        print(_table(results))
    print("written: " + ", ".join(str(path) for path in written))
    return 0


def _named(text: str, option: str) -> tuple[str, list[Path]]:
    """Name and paths of NAME=PATH, where PATH may be a pattern."""
    name, equals, pattern = text.rpartition("=")
    paths = [Path(pattern)] if Path(pattern).exists() else sorted(Path(path) for path in glob(pattern))
    if not paths:
        raise ValueError(f"{option} {text!r}: {pattern} does not exist; write NAME=PATH")
    return (name if equals else ""), paths


def _log_files(args, root: Path) -> list[tuple[str, Path]]:
    if args.log:
        named = [_named(text, "--log") for text in args.log]
        return [(f"{name} {k}" if len(paths) > 1 else name, path) for name, paths in named for k, path in enumerate(paths, 1)]
    paths = sorted([*root.rglob("*.log"), *root.rglob("*.jsonl")])
    stems = [path.stem for path in paths]
    return [(path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}", path) for path in paths]


def _read_result(name: str, folders: list[Path]) -> Result:
    """One result; several folders are runs of it with different seeds."""
    runs = [report.read_scores(folder / "scores.json" if folder.is_dir() else folder) for folder in folders]
    try:
        return Result(name or runs[0].get("name") or folders[0].name, report.mean_over_runs(runs))
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, folders))}: {error}") from error


def _vocabulary(results: list[Result], folders) -> ClassVocabulary:
    if not results:
        return ClassVocabulary(names=("-",))
    return ClassVocabulary.from_json(results[0].scores.get("vocabulary"), f"{folders[0][1][0]}/scores.json")


def read_examples(results: list[tuple[str, Path]], most: int) -> list[Example]:
    """Examples of the first result, with the predictions that the other results made for the same photos."""
    if not results:
        return []
    folders = sorted((results[0][1] / "examples").glob("*/photo.jpg"))[:most] if results[0][1].is_dir() else []
    examples = []
    for photo in folders:
        name = photo.parent.name
        with Image.open(photo) as picture:
            image = np.asarray(picture.convert("RGB"))
        predictions = {}
        for result_name, folder in results:
            prediction = _same_size(folder / "examples" / name / "prediction.png", image)
            if prediction is not None:
                predictions[result_name] = prediction
        examples.append(Example(name, image, _same_size(photo.parent / "labels.png", image), predictions))
    return examples


def _same_size(path: Path, image: np.ndarray) -> Optional[np.ndarray]:
    label_map = read_index_png(path) if path.is_file() else None
    return label_map if label_map is not None and label_map.shape == image.shape[:2] else None


def _table(results: list[Result]) -> str:
    rows = [(result.name, result.scores) for result in results] + report.with_constant("", results[0].scores)[1:]
    return report.markdown_table(rows)


def _write_tables(folder: Path, results: list[Result]) -> list[Path]:
    if not results:
        return []
    names = results[0].scores["class_names"]
    shown = [(r.name, r.scores["IoU_per_class"]) for r in results if r.scores.get("class_names") == names][:4]
    palette = ClassVocabulary.from_json(results[0].scores["vocabulary"]).palette
    report.write_text(folder / "results.md", _table(results))
    report.write_text(folder / "iou_per_class.svg", charts.standalone(charts.bar_chart(names, shown, palette, "IoU per class in percent")))
    return [folder / "results.md", folder / "iou_per_class.svg"]


def _write_curves(folder: Path, logs: list[TrainingLog]) -> list[Path]:
    drawn = {folder / f"curve_{name}.svg": svg for name, svg in training_charts(logs).items()}
    for path, svg in drawn.items():
        report.write_text(path, charts.standalone(svg))
    return list(drawn)


def _text(value: str) -> str:
    """The value itself, or the text of the file it names."""
    path = Path(value)
    return path.read_text(encoding="utf-8") if value and len(value) < 1000 and "\n" not in value and path.is_file() else value
