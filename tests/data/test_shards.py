"""ShardReader and ShardWriter: round trips, random access, several files, processes."""

import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ofaseg.data.rows import COLUMNS
from ofaseg.data.shards import ShardError, ShardReader, ShardWriter, load_vocabulary
from tests.data.sample_rows import VOCABULARY, make_row

N = 11
FORMATS = ("tsv", "parquet")


def write(root, split="train", format="tsv", count=N, rows_per_shard=4, columns=COLUMNS, vocabulary=VOCABULARY):
    with ShardWriter(root, split, vocabulary, columns, format, rows_per_shard) as writer:
        for k in range(count):
            writer.write({name: value for name, value in make_row(k).items() if name in columns})
    return root


@pytest.fixture(scope="module", params=FORMATS)
def folder(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp(request.param), format=request.param)


def digest_of(reader, order):
    return {i: hashlib.sha256(repr(reader[i]).encode()).hexdigest() for i in order}


def _read_in_worker(arguments):
    reader, order = arguments
    return os.getpid(), digest_of(reader, order)


class TestRoundTrip:
    def test_every_row_comes_back(self, folder):
        reader = ShardReader.for_split(folder, "train")
        assert len(reader) == N and reader.columns == COLUMNS
        for k in range(N):
            assert reader[k] == make_row(k)

    def test_formats_give_identical_rows(self, tmp_path):
        readers = [ShardReader.for_split(write(tmp_path / format, format=format), "train") for format in FORMATS]
        for k in range(N):
            assert list(readers[0][k].items()) == list(readers[1][k].items())
            assert [type(v) for v in readers[0][k].values()] == [type(v) for v in readers[1][k].values()]
        hashes = [json.loads((tmp_path / format / "vocabulary.json").read_text())["content_hash"] for format in FORMATS]
        assert hashes[0] == hashes[1] and hashes[0]["train"].startswith("sha256:")

    def test_columns_present_only(self, tmp_path):
        for format in FORMATS:
            reader = ShardReader.for_split(write(tmp_path / format, format=format, columns=("id", "captions", "image")), "train")
            assert reader.columns == ("image", "id", "captions") == tuple(reader[3])

    def test_vocabulary(self, folder):
        vocabulary = load_vocabulary(folder)
        assert (vocabulary.names, vocabulary.thing, vocabulary.novel) == (VOCABULARY.names, VOCABULARY.thing, VOCABULARY.novel)
        assert vocabulary.palette == VOCABULARY.palette and vocabulary.ignore_label == 255 and vocabulary.source == "test"
        description = json.loads((folder / "vocabulary.json").read_text())
        assert description["num_rows"] == {"train": N} and description["columns"] == list(COLUMNS)
        assert vocabulary.extra == {}  # what is said of the files is not the classes' business, nor a checkpoint's
        assert load_vocabulary(folder / "nothing here") is None


class TestAccess:
    def test_row_i_in_any_order(self, folder):
        reader = ShardReader.for_split(folder, "train")
        for i in [7, 0, 7, 10, 3, 3, 9, 1, 0]:
            assert reader[i]["id"] == f"sample_{i}"
        assert reader[-1]["id"] == "sample_10" and reader[np.int64(2)]["id"] == "sample_2"

    @pytest.mark.parametrize("i", [N, -N - 1, 10**9])
    def test_outside(self, folder, i):
        with pytest.raises(IndexError, match=f"row {i} is outside 0..10"):
            ShardReader.for_split(folder, "train")[i]

    def test_some_columns(self, folder):
        reader = ShardReader.for_split(folder, "train")
        assert set(reader.read(5, ("id", "label_map"))) == {"id", "label_map"}
        assert set(reader.read(5)) == {"id", "image"}
        only = ShardReader.for_split(folder, "train", columns=["id", "captions"])
        assert only[4] == {"id": "sample_4", "captions": make_row(4)["captions"]}
        with pytest.raises(ShardError, match="column label_map"):
            only.read(4, ("label_map",))
        with pytest.raises(ShardError, match="unknown column 'mask'"):
            ShardReader.for_split(folder, "train", columns=["mask"])

    def test_image_size_is_height_width(self, folder):
        reader = ShardReader.for_split(folder, "train")
        assert [reader.image_size(i) for i in range(N)] == [(5, 9)] * N

    def test_location(self, folder):
        reader = ShardReader.for_split(folder, "train")
        assert reader.location(5, "image").endswith(", row 1, column image") and "train-00001-of-00003" in reader.location(5)

    def test_files_and_globs_are_joined_in_order(self, tmp_path):
        write(tmp_path / "a", count=3, format="tsv")
        write(tmp_path / "b", count=5, format="parquet")
        mixed = ShardReader([str(tmp_path / "b" / "*.parquet"), str(tmp_path / "a" / "train-*.tsv")])
        assert [mixed[i]["id"] for i in range(8)] == [f"sample_{k}" for k in (0, 1, 2, 3, 4, 0, 1, 2)]
        by_comma = ShardReader(f"{tmp_path}/a/*.tsv,{tmp_path}/b/*.parquet")
        assert by_comma[3]["id"] == "sample_0" and len(by_comma) == 8


class TestProcesses:
    def test_pickle(self, folder):
        reader = ShardReader.for_split(folder, "train")
        before = reader[6]
        copy = pickle.loads(pickle.dumps(reader))
        assert copy[6] == before and len(copy) == N

    def test_nothing_is_open_after_construction(self, folder):
        def open_shards():
            links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
            return [os.readlink(link) for link in links if os.path.islink(link) and str(folder) in os.readlink(link)]

        before = len(open_shards())
        reader = ShardReader.for_split(folder, "train")
        assert len(open_shards()) == before
        reader.read(0)
        reader.close()
        assert len(open_shards()) == before

    def test_forked_workers_read_the_same(self, folder):
        reader = ShardReader.for_split(folder, "train")
        expected = digest_of(reader, range(N))  # open in the parent before the fork
        with multiprocessing.get_context("fork").Pool(2) as pool:
            results = pool.map(_read_in_worker, [(reader, range(N)), (reader, range(N)[::-1]), (reader, range(0, N, 2))], chunksize=1)
        assert all(pid != os.getpid() for pid, _ in results)
        assert all(expected[i] == value for _, found in results for i, value in found.items())

    def test_an_open_reader_survives_a_fork(self, folder):
        """The child must not share the parent's file position or memory map."""
        reader = ShardReader.for_split(folder, "train")
        expected = digest_of(reader, range(N))
        receiver, sender = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=lambda: sender.send(digest_of(reader, range(N)[::-1])))
        child.start()
        assert digest_of(reader, range(N)) == expected and receiver.recv() == expected
        child.join()


FRESH_PROCESS = """
import pickle, sys, types
package = types.ModuleType("ofaseg")  # the shards alone, without what the package registers
package.__path__ = [sys.argv[1]]
sys.modules["ofaseg"] = package
readers = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps([[reader[i] for i in range(len(reader))[::-1]] for reader in readers]))
assert "torch" not in sys.modules
"""


def test_a_process_that_shares_nothing_reads_the_same(tmp_path):
    readers = [ShardReader.for_split(write(tmp_path / format, format=format), "train") for format in FORMATS]
    expected = [[reader[i] for i in range(N)[::-1]] for reader in readers]
    package = str(Path(__file__).resolve().parents[2] / "ofaseg")
    done = subprocess.run([sys.executable, "-c", FRESH_PROCESS, package], input=pickle.dumps(readers), capture_output=True, check=True)
    assert pickle.loads(done.stdout) == expected


@pytest.mark.slow
def test_spawned_worker_reads_the_same(tmp_path):
    readers = [ShardReader.for_split(write(tmp_path / format, format=format), "train") for format in FORMATS]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        results = pool.map(_read_in_worker, [(reader, range(N)) for reader in readers])
    assert [found for _, found in results] == [digest_of(reader, range(N)) for reader in readers]


class TestForSplit:
    def test_val_and_valid_stand_for_each_other(self, tmp_path):
        write(tmp_path, "val", count=2)
        assert len(ShardReader.for_split(tmp_path, "valid")) == 2
        write(tmp_path / "b", "valid", count=3)
        assert len(ShardReader.for_split(tmp_path / "b", "val")) == 3
        (tmp_path / "c").mkdir()
        (tmp_path / "val-00000-of-00001.tsv").rename(tmp_path / "c" / "validation.tsv")
        (tmp_path / "vocabulary.json").rename(tmp_path / "c" / "vocabulary.json")
        assert ShardReader.for_split(tmp_path / "c", "valid")[1]["id"] == "sample_1"

    def test_one_file_per_split(self, tmp_path):
        write(tmp_path, count=3)
        (tmp_path / "train-00000-of-00001.tsv").rename(tmp_path / "train.tsv")
        assert ShardReader.for_split(tmp_path, "train")[2]["id"] == "sample_2"

    def test_split_names_with_hyphens(self, tmp_path):
        write(tmp_path, "train", count=3)
        write(tmp_path, "train-small", count=2)
        assert (len(ShardReader.for_split(tmp_path, "train")), len(ShardReader.for_split(tmp_path, "train-small"))) == (3, 2)

    def test_missing_split_lists_the_others(self, tmp_path):
        write(tmp_path, "train", count=2)
        with pytest.raises(ShardError, match="no shards of split 'test'; it has train"):
            ShardReader.for_split(tmp_path, "test")

    def test_missing_folder_names_its_neighbours(self, tmp_path):
        (tmp_path / "camvid_shards").mkdir()
        with pytest.raises(ShardError, match="no such folder .did you mean camvid_shards.*prepare.py"):
            ShardReader.for_split(tmp_path / "camvid_shard", "train")

    def test_missing_shard(self, tmp_path):
        write(tmp_path)
        (tmp_path / "train-00001-of-00003.tsv").unlink()
        with pytest.raises(ShardError, match="1 of 3 shards .* missing, the first is number 00001"):
            ShardReader.for_split(tmp_path, "train")

    def test_two_sets(self, tmp_path):
        write(tmp_path / "a", count=2)
        write(tmp_path / "b", count=2, format="parquet")
        os.rename(tmp_path / "b" / "train-00000-of-00001.parquet", tmp_path / "a" / "train-00000-of-00001.parquet")
        with pytest.raises(ShardError, match="more than one set"):
            ShardReader.for_split(tmp_path / "a", "train")

    def test_row_count_of_the_description_is_checked(self, tmp_path):
        write(tmp_path, count=4)
        path = tmp_path / "train-00000-of-00001.tsv"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
        with pytest.raises(ShardError, match="train-00000-of-00001.tsv: 3 rows, vocabulary.json says 4"):
            ShardReader.for_split(tmp_path, "train")

    def test_files_of_another_cut_are_counted_one_by_one(self, tmp_path):
        """Two files exchanged for two others of the same total."""
        write(tmp_path / "a", count=4, rows_per_shard=3)
        write(tmp_path / "b", count=4, rows_per_shard=2)
        for name in ("train-00000-of-00002.tsv", "train-00001-of-00002.tsv"):
            os.replace(tmp_path / "b" / name, tmp_path / "a" / name)
        with pytest.raises(ShardError, match="train-00000-of-00002.tsv: 2 rows, vocabulary.json says 3"):
            ShardReader.for_split(tmp_path / "a", "train")

    def test_joined_files_are_counted_together(self, tmp_path):
        write(tmp_path, count=5, rows_per_shard=3)
        parts = [tmp_path / f"train-0000{k}-of-00002.tsv" for k in range(2)]
        (tmp_path / "train.tsv").write_bytes(b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink()
        assert len(ShardReader.for_split(tmp_path, "train")) == 5

    def describe(self, root, **changes):
        path = root / "vocabulary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def test_an_interrupted_split_does_not_stop_another_name_of_it(self, tmp_path):
        write(tmp_path, "valid", count=3)
        write(tmp_path, "val", count=2)
        self.describe(tmp_path, writing=["val"])
        assert len(ShardReader.for_split(tmp_path, "valid")) == 3
        assert len(ShardReader.for_split(tmp_path, "validation")) == 3, "valid comes first"
        with pytest.raises(ShardError, match="writing split 'val' was interrupted.*prepare.py --verify"):
            ShardReader.for_split(tmp_path, "val")

    def test_interrupted_under_another_name(self, tmp_path):
        write(tmp_path, "val", count=2)
        self.describe(tmp_path, writing=["val"])
        with pytest.raises(ShardError, match="writing split 'val' was interrupted"):
            ShardReader.for_split(tmp_path, "valid")

    def test_interrupted_before_the_first_file(self, tmp_path):
        write(tmp_path, "train", count=2)
        self.describe(tmp_path, writing=["val"])
        with pytest.raises(ShardError, match="writing split 'val' was interrupted"):
            ShardReader.for_split(tmp_path, "valid")
        with pytest.raises(ShardError, match="no shards of split 'test'; it has train"):
            ShardReader.for_split(tmp_path, "test")

    def test_counts_are_those_of_the_name_that_is_read(self, tmp_path):
        """Both were described; the files of one were removed."""
        write(tmp_path, "valid", count=3)
        write(tmp_path, "val", count=2)
        (tmp_path / "valid-00000-of-00001.tsv").unlink()
        assert len(ShardReader.for_split(tmp_path, "valid")) == 2

    def test_a_wrong_count_names_the_command_that_lists_all(self, tmp_path):
        write(tmp_path / "my data", count=4)
        path = tmp_path / "my data" / "train-00000-of-00001.tsv"
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        with pytest.raises(ShardError, match=f"python data_prep/prepare.py --verify '{tmp_path}/my data'"):
            ShardReader.for_split(tmp_path / "my data", "train")

    def test_a_description_edited_by_hand(self, tmp_path):
        write(tmp_path, count=4)
        for changes, match in (
            ({"files": {"train": [{"name": "a"}]}}, "vocabulary.json: files of split 'train': entry 0 has no rows, a number"),
            ({"files": {"train": {}}}, "files of split 'train' is not a list"),
            ({"num_rows": {"train": "4"}}, "num_rows of split 'train' is not a number"),
            ({"num_rows": None}, "num_rows of split 'train' is not a number"),
            ({"writing": 1}, "writing is not a list of splits"),
        ):
            text = (tmp_path / "vocabulary.json").read_text()
            self.describe(tmp_path, **changes)
            with pytest.raises(ShardError, match=match):
                ShardReader.for_split(tmp_path, "train")
            (tmp_path / "vocabulary.json").write_text(text)
