"""Builds one self-contained HTML page from a folder of evaluations (scores.json) and training logs (JSON lines).

The page holds the scores, examples under a slider, IoU per class, the confusion matrix, training curves, the configuration
(from the log, else from the evaluated checkpoint) and what is known of the data.
"""

import argparse
from glob import glob
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image

from ofaseg.checkpoints.safe import load_configuration
from ofaseg.evaluation import charts, confusion, report
from ofaseg.evaluation.configuration import option_groups
from ofaseg.evaluation.data_summary import DataSummary, read_data_summary
from ofaseg.evaluation.examples import GROUPS, ChosenPhoto, read_index
from ofaseg.evaluation.html_examples import Example
from ofaseg.evaluation.html_report import CLASS_BARS, Result, class_series, html_report, training_charts
from ofaseg.evaluation.pictures import read_index_png
from ofaseg.evaluation.training_log import TrainingLog, read_training_log
from ofaseg.vocabulary import ClassVocabulary

SEGMENT_PICTURES = {"segments": "segments", "panoptic": "predicted segments"}
"""File of an example -> what the page calls it."""


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
    parser.add_argument("--examples", type=int, default=4, help="best, worst and random photos shown, so many of each at most")
    parser.add_argument("--out", default="", help="the page (default: RUN_DIR/report.html)")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def run(args) -> int:
    root = Path(args.run_dir)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    folders = [_named(text, "--result") for text in args.result] or [("", [path.parent]) for path in sorted(root.rglob("scores.json"))]
    logs = [read_training_log(path, name) for name, path in _log_files(args, root)]
    logs = [log for log in logs if log or log.configuration]
    if not folders and not logs:
        raise ValueError(f"{root}: holds neither scores.json nor a training log; run `ofaseg evaluate ... --out {root}/evaluation` first")
    results = [_read_result(name, runs) for name, runs in folders]
    vocabulary = _vocabulary(results, folders)
    examples = read_examples([(result.name, runs[0]) for result, (_, runs) in zip(results, folders)], max(0, args.examples))
    configurations = read_configurations(logs, results)
    data = read_data(results, configurations)
    out = Path(args.out) if args.out else root / "report.html"
    texts = (_text(args.notes), _text(args.details))
    page = html_report(args.title, results, vocabulary, examples, logs, *texts, configurations, data)
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
        scores = report.mean_over_runs(runs)
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, folders))}: {error}") from error
    return Result(name or runs[0].get("name") or folders[0].name, scores, _confusion(folders, len(runs[0].get("class_names") or ())))


def _confusion(folders: list[Path], num_classes: int) -> Optional[np.ndarray]:
    """The confusion matrices of the runs added up; None when one of them was evaluated without keeping it."""
    paths = [(folder if folder.is_dir() else folder.parent) / confusion.FILE for folder in folders]
    if not all(path.is_file() for path in paths):
        return None
    return sum(confusion.read_matrix(path, num_classes) for path in paths)


def read_configurations(logs: list[TrainingLog], results: list[Result]) -> list[tuple[str, dict]]:
    """(run, option groups) of the training logs; without any, of the first result's checkpoint, where it still lies.

    Raises:
        CheckpointError: that file is damaged.
    """
    found = [(log.name, log.configuration) for log in logs if log.configuration]
    checkpoint = str(results[0].scores.get("checkpoint") or "") if results else ""
    if not found and checkpoint and Path(checkpoint).is_file():
        found = [(results[0].name, option_groups(load_configuration(checkpoint)))]
    return found


def read_data(results: list[Result], configurations: list[tuple[str, dict]]) -> list[DataSummary]:
    """What is known of the folders of shards that results and runs name, as far as these are on this machine."""
    named = [str(result.scores.get("shards") or "") for result in results]
    named += [str(groups.get("task", {}).get("data") or "") for _, groups in configurations]
    summaries = [read_data_summary(folder) for folder in dict.fromkeys(named) if folder]
    return [summary for summary in summaries if summary is not None]


def _vocabulary(results: list[Result], folders) -> ClassVocabulary:
    if not results:
        return ClassVocabulary(names=("-",))
    return ClassVocabulary.from_json(results[0].scores.get("vocabulary"), f"{folders[0][1][0]}/scores.json")


def read_examples(results: list[tuple[str, Path]], most: int) -> list[Example]:
    """Examples of the first result, with the predictions that the other results made for the same photos.

    At most `most` of each group.
    """
    if not results or not results[0][1].is_dir():
        return []
    folder = results[0][1] / "examples"
    return [_read_example(folder, photo, groups, results) for photo, groups in shown_photos(read_index(folder), most)]


def shown_photos(photos: list[ChosenPhoto], most: int) -> list[tuple[ChosenPhoto, tuple[str, ...]]]:
    """The first `most` photos of each group, none twice, each with all groups among whose first it is."""
    groups_of: dict[str, list[str]] = {}
    by_name = {photo.name: photo for photo in photos}
    for group in (*GROUPS, ""):
        members = [photo for photo in photos if (group in photo.groups if group else not photo.groups)]
        if group == "worst":
            members.sort(key=lambda photo: (photo.miou, photo.row))
        elif group == "random":
            members.sort(key=lambda photo: photo.row)  # in the order of the list those that are also the best would come first
        for photo in members[:most]:
            groups_of.setdefault(photo.name, []).extend([group] if group else [])
    return [(by_name[name], tuple(groups)) for name, groups in groups_of.items()]


def _read_example(folder: Path, photo: ChosenPhoto, groups: tuple[str, ...], results: list[tuple[str, Path]]) -> Example:
    path = folder / photo.name / "photo.jpg"
    image = read_picture(path)
    if image is None:
        raise ValueError(f"{path}: no such file; evaluate again")
    predictions = {}
    for name, other in results:
        prediction = _same_size(other / "examples" / photo.name / "prediction.png", image)
        if prediction is not None:
            predictions[name] = prediction
    drawn = {title: read_picture(path.parent / f"{file}.jpg") for file, title in SEGMENT_PICTURES.items()}
    drawn = {title: picture for title, picture in drawn.items() if picture is not None}
    return Example(photo.name, image, _same_size(path.parent / "labels.png", image), predictions, groups, photo.miou, drawn)


def read_picture(path: Path) -> Optional[np.ndarray]:
    """(H, W, 3) uint8 of a picture file; None without one. Raises ValueError when it is damaged."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a picture that can be read ({error}); evaluate again") from error


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
    palette = ClassVocabulary.from_json(results[0].scores["vocabulary"]).palette
    report.write_text(folder / "results.md", _table(results))
    written = [folder / "results.md"]
    for key, title in CLASS_BARS.items():
        series = class_series(results, key)
        if series:
            written.append(folder / f"{key.lower()}.svg")
            chart = charts.bar_chart(names, series, palette, f"{title} per class in percent")
            report.write_text(written[-1], charts.standalone(chart))
    return written


def _write_curves(folder: Path, logs: list[TrainingLog]) -> list[Path]:
    drawn = {folder / f"curve_{name}.svg": svg for name, svg in training_charts(logs).items()}
    for path, svg in drawn.items():
        report.write_text(path, charts.standalone(svg))
    return list(drawn)


def _text(value: str) -> str:
    """The value itself, or the text of the file it names."""
    path = Path(value)
    return path.read_text(encoding="utf-8") if value and len(value) < 1000 and "\n" not in value and path.is_file() else value
