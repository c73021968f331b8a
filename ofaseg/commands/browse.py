"""Writes a gallery of the rows of shards: pages of photos with their label maps, captions and boxes, to open in a browser.

Rows that cannot be read appear as red cards with the reason; a choice of class shows only the rows that hold it.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Iterator, Optional

from tqdm import tqdm

from ofaseg.commands.evaluate import spread
from ofaseg.data import codec
from ofaseg.data.segmentation_dataset import decode_pair
from ofaseg.data.shards import ShardError, ShardReader, list_splits, load_vocabulary
from ofaseg.evaluation.gallery import Card, write_gallery
from ofaseg.vocabulary import ClassVocabulary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", help="folder of shards, or one TSV or Parquet file")
    parser.add_argument("--split", default="", help="only this split, or a comma-separated list (default: all)")
    parser.add_argument("--out", default="", help="folder for the pages (default: a folder `gallery` below the shards)")
    parser.add_argument("--per-page", type=int, default=60, help="rows on a page")
    parser.add_argument("--max-rows", type=int, default=600, help="rows of a split at most, evenly spread over it (0 = all)")
    parser.add_argument("--title", default="", help="heading of the pages (default: the name of the folder)")
    parser.add_argument("--class-names", default="", help="for TSV files without vocabulary.json: a file or a comma-separated list")
    parser.add_argument("--label-offset", type=int, default=1, help="for TSV files without vocabulary.json: stored label of class 0")
    parser.add_argument("--selected-cols", default="", help="positions of image, label map and id in a TSV row, such as 0,1,2")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def run(args) -> int:
    if args.per_page < 1 or args.max_rows < 0:
        raise ValueError(f"--per-page {args.per_page} --max-rows {args.max_rows}: give at least 1 row per page, and 0 or more rows")
    path = Path(args.shards)
    folder = path if path.is_dir() else path.parent
    with contextlib.ExitStack() as stack:
        readers = {name: stack.enter_context(reader) for name, reader in open_readers(path, args)}
        vocabulary = _vocabulary(folder, readers, args)
        rows = {name: spread(len(reader), args.max_rows or len(reader)) for name, reader in readers.items()}
        total = sum(map(len, rows.values()))
        out = Path(args.out) if args.out else folder / "gallery"
        bad: list[str] = []
        with tqdm(total=total, unit="row", disable=None) as bar:
            cards = _cards(readers, rows, vocabulary, bad, bar)
            splits = [(name, len(chosen)) for name, chosen in rows.items() if chosen]
            pages = write_gallery(out, args.title or folder.resolve().name, vocabulary, splits, cards, args.per_page)
    for message in bad[:10]:
        print(f"cannot be read: {message}")
    print(f"{total} rows on {len(pages)} pages" + (f", {len(bad)} of them cannot be read" if bad else "") + f": {out / 'index.html'}")
    return 0


def open_readers(path: Path, args) -> Iterator[tuple[str, ShardReader]]:
    """(split, reader) of the splits asked for; a single file is one split of its own name.

    Raises:
        ShardError: there is no such split, or its files cannot be read.
    """
    selected = args.selected_cols or None
    if not path.is_dir():
        yield path.name, ShardReader(str(path), selected_cols=selected)
        return
    splits = [name.strip() for name in args.split.split(",") if name.strip()] or list(list_splits(path))
    if not splits:
        raise ShardError.at(path, "no .tsv or .parquet file there; give the folder that data_prep/prepare.py wrote")
    for name in splits:
        yield name, ShardReader.for_split(path, name, selected_cols=selected)


def _vocabulary(folder: Path, readers: dict[str, ShardReader], args) -> Optional[ClassVocabulary]:
    """The classes of the label maps, None when no row has one. Raises VocabularyError when they are unknown."""
    from user_tasks.segmentation_task import SegmentationTask, SegmentationTaskConfig

    found = load_vocabulary(folder)
    if found is None and not args.class_names and not any("label_map" in reader.columns for reader in readers.values()):
        return None
    # the rules of training and evaluation, so that a gallery shows what they will see
    cfg = SegmentationTaskConfig(data=str(folder), class_names=args.class_names, label_offset=args.label_offset)
    return SegmentationTask.resolve_vocabulary(cfg)


def _cards(readers, rows, vocabulary: Optional[ClassVocabulary], bad: list[str], bar) -> Iterator[Card]:
    for name, reader in readers.items():
        for row in rows[name]:
            card = read_card(reader, row, vocabulary)
            if card.problem:
                bad.append(card.problem)
            bar.update()
            yield card


def read_card(reader: ShardReader, row: int, vocabulary: Optional[ClassVocabulary]) -> Card:
    """Row `row` decoded; a bad row becomes a card that tells the problem."""
    file, number = reader.locate(row)
    place = f"{Path(file).name}, row {number}"
    name = f"row {number}"
    try:
        content = reader[row]
        name = str(content.get("id") or name)
        image, label_map = _decode(reader, row, content, vocabulary)
    except (ShardError, codec.CodecError) as error:
        return Card(name, place, problem=str(error))
    boxes = content.get("boxes") or content.get("segments") or []
    return Card(name, place, image, label_map, content.get("captions") or (), boxes)


def _decode(reader: ShardReader, row: int, content: dict, vocabulary: Optional[ClassVocabulary]):
    """Image (H, W, 3) uint8 and label map (H, W) or None of a row."""
    if vocabulary is not None and content.get("label_map"):
        return decode_pair(content, vocabulary, lambda column="": reader.location(row, column))
    return codec.decode_image(content["image"], where=reader.location(row, "image")), None
