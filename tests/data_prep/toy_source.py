"""A source of small pictures for tests of writing, with samples that fail in chosen ways in any process."""

import os
import signal
from pathlib import Path

import numpy as np

from data_prep.source import Source, SourceError
from data_prep.write_split import WriteOptions, write_split
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader
from ofaseg.vocabulary import ClassVocabulary

VOCABULARY = ClassVocabulary(names=("sky", "road", "tree"), source="toy pictures")


class ToySource(Source):
    """Sample i: a photo of height 6 + i % 2 and width 9, a label map of class i % 3 with one unlabelled row of pixels.

    Args:
        num: number of samples.
        bad: samples that raise SourceError.
        ids: sample -> another id than "sample_<i>".
        folder: where raw files and marks lie; a sample with a file `<i>.raw` names it.
        killed_once: the process that first reads this sample is killed.
    """

    vocabulary = VOCABULARY

    def __init__(self, num=10, bad=(), ids=None, folder=None, killed_once=None):
        self.num, self.bad, self.ids, self.folder, self.killed_once = num, tuple(bad), ids or {}, folder, killed_once

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, i: int) -> dict:
        if i == self.killed_once and not (mark := Path(self.folder) / "killed").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if i in self.bad:
            raise SourceError(f"{self.name(i)}: damaged; copy it again")
        image = np.random.default_rng(i).integers(0, 256, (6 + i % 2, 9, 3), dtype=np.uint8)
        label_map = np.full(image.shape[:2], i % 3)
        label_map[0] = -1
        return {"id": self.ids.get(i, f"sample_{i}"), "image": image, "label_map": label_map}

    def name(self, i: int) -> str:
        return str(Path(self.folder or "raw") / f"{i}.raw")


def write(source, out, split="train", **options) -> dict:
    """`write_split` of shards of three rows by this process, unless `options` say otherwise."""
    return write_split(source, out, split, WriteOptions(**{"format": "tsv", "rows_per_shard": 3, "workers": 1} | options))


def content(out) -> dict[str, bytes]:
    """Name -> bytes of every file of a data folder whose content is a function of the source: not those that hold times."""
    files = (path for path in Path(out).iterdir() if path.suffix != ".idx" and not path.name.startswith("summary_"))
    return {path.name: path.read_bytes() for path in files}


def ids(out, split="train") -> list[str]:
    """The ids of a written split, in order."""
    with ShardReader.for_split(out, split) as reader:
        for i in range(len(reader)):
            codec.decode_image(reader[i]["image"])
        return [reader[i]["id"] for i in range(len(reader))]
