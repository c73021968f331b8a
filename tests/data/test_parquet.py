"""Parquet shards: Hugging Face `datasets` shows them, small row groups, damaged files."""

import multiprocessing
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ofaseg.data import codec, parquet
from ofaseg.data.shards import COLUMNS, ShardError, ShardReader, ShardWriter
from ofaseg.vocabulary import ClassVocabulary
from tests.data.sample_rows import VOCABULARY, make_row

N = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("parquet")
    with ShardWriter(root, "train", VOCABULARY, COLUMNS, "parquet", rows_per_shard=6) as writer:
        for k in range(N):
            writer.write(make_row(k))
    return root


def test_datasets_library_shows_pictures_and_maps(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    data = datasets.load_dataset("parquet", data_files=str(folder / "train-*.parquet"), cache_dir=str(tmp_path))["train"]
    assert len(data) == N and tuple(data.column_names) == COLUMNS
    for name in ("image", "label_map", "segment_map"):
        assert isinstance(data.features[name], datasets.Image)
    for k in (1, 5, 9):
        row, shown = make_row(k), data[k]
        assert shown["image"].size == (9, 5)
        np.testing.assert_array_equal(np.asarray(shown["image"].convert("RGB")), codec.decode_image(row["image"]))
        labels = np.asarray(shown["label_map"]).astype(int)
        np.testing.assert_array_equal(np.where(labels == 255, -1, labels), codec.decode_label_map(row["label_map"], VOCABULARY))
        assert {name: shown[name] for name in ("id", "captions", "boxes", "segments")} == {
            name: row[name] for name in ("id", "captions", "boxes", "segments")
        }
    assert data[4]["label_map"] is None


def test_description_equals_what_the_library_would_write():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features.from_arrow_schema(parquet.schema(COLUMNS))
    assert features.arrow_schema.types == parquet.schema(COLUMNS).types
    assert features["captions"] == datasets.List(datasets.Value("string")) and features["id"] == datasets.Value("string")


def test_sixteen_bit_maps_of_a_thousand_classes(tmp_path):
    vocabulary = ClassVocabulary(names=tuple(f"class {k}" for k in range(1000)))
    labels = np.arange(-1, 1001 - 1).reshape(7, 143).astype(np.int32)
    for format in ("tsv", "parquet"):
        with ShardWriter(tmp_path / format, "train", vocabulary, ("image", "label_map", "id"), format) as writer:
            image = codec.encode_image(np.zeros((7, 143, 3), np.uint8))
            writer.write({"id": "a", "image": image, "label_map": codec.encode_label_map(labels, vocabulary)})
        row = ShardReader.for_split(tmp_path / format, "train")[0]
        np.testing.assert_array_equal(codec.decode_label_map(row["label_map"], vocabulary), labels)


def test_row_groups_are_small(tmp_path):
    image = codec.encode_image(np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8))  # about 197 kB
    with ShardWriter(tmp_path, "train", None, ("image", "id"), "parquet") as writer:
        for k in range(9):
            writer.write({"id": str(k), "image": image})
    metadata = pq.read_metadata(tmp_path / "train-00000-of-00001.parquet")
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    assert max(group.total_byte_size for group in groups) < 2 * parquet.BYTES_PER_GROUP
    assert all(not group.column(0).is_stats_set for group in groups)  # no picture as the "minimum" of a column
    reader = ShardReader.for_split(tmp_path, "train")
    assert [reader.read(k, ("id",))["id"] for k in (8, 0, 5)] == ["8", "0", "5"]


def test_cache_is_bounded(folder):
    reader = ShardReader.for_split(folder, "train")
    for shard in reader._shards:
        for row in range(len(shard)):
            shard.read(row, COLUMNS)
        assert len(shard._groups) <= 8 * len(COLUMNS)


class TestFaults:
    def path(self, folder, tmp_path, change):
        data = bytearray((folder / "train-00000-of-00002.parquet").read_bytes())
        path = tmp_path / "bad.parquet"
        path.write_bytes(bytes(change(data)))
        return str(path)

    @pytest.mark.parametrize("change", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: b"hello", lambda d: d[:-8] + bytes(8)])
    def test_not_a_whole_file(self, folder, tmp_path, change):
        path = self.path(folder, tmp_path, change)
        with pytest.raises(ShardError, match="bad.parquet: not a complete Parquet file"):
            ShardReader(path)

    def test_damaged_page(self, folder, tmp_path):
        image = make_row(2)["image"]

        def flip(data):
            data[data.index(image) + len(image) // 2] ^= 255
            return data

        path = self.path(folder, tmp_path, flip)
        with pytest.raises(ShardError, match="row 2, column image: row group 0 is damaged") as caught:
            ShardReader(path)[2]
        assert caught.value.row == 2

    def test_damage_beside_good_columns_is_named(self, folder, tmp_path):
        """Columns are read together; the error still names the bad one, and the others stay readable."""
        label_map = make_row(2)["label_map"]

        def flip(data):
            data[data.index(label_map) + len(label_map) // 2] ^= 255
            return data

        reader = ShardReader(self.path(folder, tmp_path, flip))
        with pytest.raises(ShardError, match="row 2, column label_map: row group 0 is damaged"):
            reader.read(2, ("image", "label_map", "id"))
        assert reader.read(2, ("image", "id")) == {name: make_row(2)[name] for name in ("image", "id")}

    def test_checksums_are_compared_once(self, folder, monkeypatch):
        """Also when a data worker did it, that is, a forked process that has ended; a reader of its own starts anew."""
        compared = []

        class Recorded(pq.ParquetFile):
            def read_row_group(self, *args, **kwargs):
                compared.append(self.verify)
                return super().read_row_group(*args, **kwargs)

            def __init__(self, *args, page_checksum_verification, **kwargs):
                self.verify = page_checksum_verification
                super().__init__(*args, page_checksum_verification=page_checksum_verification, **kwargs)

        monkeypatch.setattr(parquet.pq, "ParquetFile", Recorded)
        reader = ShardReader(str(folder / "train-00000-of-00002.parquet"))
        worker = multiprocessing.get_context("fork").Process(target=reader.read, args=(0, ("image",)))
        worker.start()
        worker.join()
        assert worker.exitcode == 0 and compared == []
        assert reader.read(0, ("image",)) == {"image": make_row(0)["image"]} and compared == [False]
        assert reader.read(0, ("image", "label_map"))["label_map"] == make_row(0)["label_map"] and compared == [False, True]
        reader.close()
        assert reader.read(0, ("image", "label_map"))["image"] == make_row(0)["image"] and compared == [False, True, False]
        assert pickle.loads(pickle.dumps(reader)).read(0, ("image",)) == {"image": make_row(0)["image"]} and compared[3:] == [False]
        ShardReader(reader.paths).read(0, ("image",))
        assert compared[4:] == [True]

    def table(self, tmp_path, **columns):
        pq.write_table(pa.table(columns), tmp_path / "other.parquet")
        return str(tmp_path / "other.parquet")

    def test_missing_column(self, tmp_path):
        path = self.table(tmp_path, picture=[b"x"], label=[1])
        with pytest.raises(ShardError, match="column image: the file has the columns picture, label; rename"):
            ShardReader(path)

    def test_column_of_another_type(self, tmp_path):
        with pytest.raises(ShardError, match="column image: type string instead of struct"):
            ShardReader(self.table(tmp_path, image=["cat.jpg"], id=["1"]))
        with pytest.raises(ShardError, match="column captions: type string"):
            ShardReader(self.table(tmp_path, image=[b"x"], id=["1"], captions=["one"]))

    def test_paths_instead_of_bytes(self, tmp_path):
        image = pa.array([{"bytes": None, "path": "cat.jpg"}], parquet.schema(["image"]).field("image").type)
        reader = ShardReader(self.table(tmp_path, image=image, id=["1"]))
        with pytest.raises(ShardError, match="row 0, column image: only the path 'cat.jpg' is stored"):
            reader[0]

    def test_nulls(self, tmp_path):
        reader = ShardReader(self.table(tmp_path, image=pa.array([None, b"x"], pa.binary()), id=["1", None]))
        with pytest.raises(ShardError, match="row 0, column image: no image bytes"):
            reader[0]
        with pytest.raises(ShardError, match="row 1, column id: no value"):
            reader[1]

    def test_no_row(self, tmp_path):
        with pytest.raises(ShardError, match="has no row"):
            ShardReader(self.table(tmp_path, image=pa.array([], pa.binary())))

    def test_integer_ids_and_plain_bytes_of_other_writers(self, tmp_path):
        assert ShardReader(self.table(tmp_path, image=[b"x", b"y"], id=[3, 4]))[1] == {"image": b"y", "id": "4"}
