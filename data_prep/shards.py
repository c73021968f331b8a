"""Existing shards, to write them in the other format or in files of other sizes; every row stays byte for byte.

    ROOT/<split>-00000-of-00004.tsv (or .parquet), vocabulary.json      a folder that data_prep/prepare.py wrote
    ROOT/<split>.tsv                                                    official OFA and IFSeg TSV files, such as unseen_val.tsv
    ROOT                                                                or one such file itself

Official TSV files have no vocabulary.json, so `--class-names` is needed; they hold image, label map, id and line number in
standard or url-safe base64, and their label maps store 1..K for the classes and 0 for no label (`--label-offset`, `--ignore`
for others). Other files may order their fields otherwise: `--selected-cols` gives the field numbers of image, label map and id.
"""

import argparse
from pathlib import Path
from typing import Optional

from data_prep.label_values import add_label_arguments, listed_names, mark_novel, user_vocabulary
from data_prep.source import Source, SourceError
from ofaseg.data.shards import ShardError, ShardReader, load_vocabulary
from ofaseg.data.shards import list_splits as splits_in_folder
from ofaseg.vocabulary import ClassVocabulary, resolve_vocabulary

_OFFICIAL_OFFSET = 1
_OFFICIAL_IGNORE = 0
_EXTENSIONS = (".tsv", ".parquet")


def add_arguments(parser) -> None:
    """Options of this dataset."""
    add_label_arguments(parser, _OFFICIAL_OFFSET)
    parser.add_argument("--selected-cols", metavar="0,1,2", help="fields of image, label map and id in TSV files without vocabulary.json")


def list_splits(root, args: argparse.Namespace) -> list[str]:
    """The splits in the folder, or the name of the file. Raises FileNotFoundError without any."""
    path = Path(root)
    if path.is_file() and path.suffix in _EXTENSIONS:
        return [path.stem]
    splits = list(splits_in_folder(path)) if path.is_dir() else []
    if not splits:
        raise FileNotFoundError(f"{root}: no .tsv or .parquet file; give the folder of the shards as --root, or one such file")
    return splits


class ShardsSource(Source):
    """The rows of one split as they are.

    Raises:
        ShardError: the shards cannot be read.
        VocabularyError: there are no class names, or they disagree with those beside the shards.
    """

    def __init__(self, root, split: str, vocabulary: Optional[ClassVocabulary], selected_cols: Optional[str] = None):
        path = Path(root)
        if path.is_file():
            self.reader = ShardReader(str(path), selected_cols)
        else:
            self.reader = ShardReader.for_split(path, split, selected_cols)
        self.vocabulary = vocabulary
        self.columns = self.reader.columns

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int) -> dict:
        """Raises SourceError for a row that cannot be read."""
        try:
            return self.reader[i]
        except ShardError as error:
            raise SourceError(str(error)) from error

    def name(self, i: int) -> str:
        return self.reader.location(i)

    def files(self, i: int) -> tuple[str, ...]:
        return (self.reader.locate(i)[0],)


def open_split(root, split: str, args: argparse.Namespace) -> ShardsSource:
    """The rows of a split. Raises as `ShardsSource`."""
    source = ShardsSource(root, split, _vocabulary(Path(root), args), args.selected_cols)
    if source.vocabulary is None and "label_map" in source.columns:
        problem = f"{root}: no class names beside the shards; give them in label order by --class-names"
        raise SourceError(f"{problem} (label values: see --label-offset, --ignore)")
    return source


def _vocabulary(root: Path, args: argparse.Namespace) -> Optional[ClassVocabulary]:
    """The classes beside the shards, else those of the command line, else None."""
    vocabulary = load_vocabulary(root if root.is_dir() else root.parent)
    if vocabulary is not None:
        vocabulary = resolve_vocabulary(args.class_names, vocabulary)
    elif args.class_names:
        names = listed_names(args.class_names)
        vocabulary = user_vocabulary(names, args.label_offset, args.ignore or (_OFFICIAL_IGNORE,), source="--class-names")
    elif args.novel:
        raise SourceError(f"{root}: --novel needs class names: there is no vocabulary.json beside the shards; give --class-names")
    return vocabulary and mark_novel(vocabulary, args.novel)
