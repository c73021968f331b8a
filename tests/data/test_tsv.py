"""TSV shards: the offsets index is never stale, official files are read as they are, a bad row is one clear error."""

import base64
import logging
import os
import pickle

import numpy as np
import pytest

from ofaseg.data import codec, tsv
from ofaseg.data.shards import ShardError, ShardReader, ShardWriter
from ofaseg.vocabulary import ClassVocabulary
from tests.data.sample_rows import VOCABULARY, make_row

OFFICIAL = ClassVocabulary(names=VOCABULARY.names, label_offset=1, ignore_label=0)


def official_line(k: int, line_number: bool = True) -> bytes:
    """A row as IFSeg's notebooks write it: url-safe reading, label offset 1, 1-based line number."""
    labels = np.random.default_rng(k).integers(-1, 3, (5, 9))
    fields = [
        base64.b64encode(make_row(2 * k)["image"]),
        base64.urlsafe_b64encode(codec.encode_label_map(labels, OFFICIAL)),
        b"%012d" % k,
        b"%d" % (k + 1),
    ]
    return b"\t".join(fields if line_number else fields[:3])


def official(path, count=4, end=b"\n", last=b"", **options):
    path.write_bytes(end.join(official_line(k, **options) for k in range(count)) + last)
    return str(path)


@pytest.fixture
def path(tmp_path):
    return official(tmp_path / "val.tsv")


def damage(path, row, change):
    lines = open(path, "rb").read().split(b"\n")
    lines[row] = change(lines[row])
    open(path, "wb").write(b"\n".join(lines))
    return path


class TestOfficialFiles:
    @pytest.mark.parametrize("end, last", [(b"\n", b""), (b"\n", b"\n"), (b"\r\n", b""), (b"\r\n", b"\r\n")])
    @pytest.mark.parametrize("line_number", [True, False])
    def test_line_ends(self, tmp_path, end, last, line_number):
        reader = ShardReader(official(tmp_path / "val.tsv", end=end, last=last, line_number=line_number))
        assert len(reader) == 4 and reader.columns == ("image", "label_map", "id")
        for k in (2, 0, 3, 1):
            assert reader[k]["id"] == f"{k:012d}" and reader[k]["image"] == make_row(2 * k)["image"]
            labels = codec.decode_label_map(reader[k]["label_map"], OFFICIAL)
            np.testing.assert_array_equal(labels, np.random.default_rng(k).integers(-1, 3, (5, 9)))

    def test_selected_columns(self, tmp_path):
        lines = [b"\t".join([b"%d" % k, *official_line(k).split(b"\t")]) for k in range(3)]
        (tmp_path / "x.tsv").write_bytes(b"\n".join(lines))
        reader = ShardReader(str(tmp_path / "x.tsv"), selected_cols="1,2,3")
        assert reader[2]["id"] == "000000000002" and set(reader[2]) == {"image", "label_map", "id"}
        assert ShardReader(str(tmp_path / "x.tsv"), "3,1", ["id", "image"])[1]["image"] == make_row(2)["image"]

    @pytest.mark.parametrize("text", ["a,b,c", "0,1,1", "0,-1,2", "0,1,2,3", ""])
    def test_bad_selection(self, path, text):
        if text:
            with pytest.raises(ShardError, match="--selected-cols"):
                ShardReader(path, selected_cols=text)
        else:
            assert len(ShardReader(path, selected_cols=text)) == 4

    def test_selection_beyond_the_line(self, path):
        with pytest.raises(ShardError, match="row 0: line 1 has 4 columns, expected at least 8"):
            ShardReader(path, selected_cols="0,1,7")[0]

    def test_selection_against_the_description(self, tmp_path):
        with ShardWriter(tmp_path, "train", VOCABULARY, ("image", "id", "captions"), "tsv") as out:
            out.write({key: value for key, value in make_row(1).items() if key in ("image", "id", "captions")})
        assert ShardReader.for_split(tmp_path, "train", "0")[0].keys() == {"image"}
        with pytest.raises(ShardError, match="column label_map: --selected-cols puts it in field 1, where vocabulary.json has id"):
            ShardReader.for_split(tmp_path, "train", "0,1,2")

    def test_plain_captions(self, tmp_path):
        (tmp_path / "x.tsv").write_bytes(official_line(0).split(b"\t")[0] + b"\ta dog on grass\n")
        assert ShardReader(str(tmp_path / "x.tsv"), "0,1", ["image", "captions"])[0]["captions"] == ["a dog on grass"]


class TestIndex:
    def test_it_is_written_used_and_small(self, path, monkeypatch):
        ShardReader(path)
        index = tsv.index_path(path)
        assert index.stat().st_size == tsv._HEADER.size + 8 * 5 and index.read_bytes()[:8] == b"OFASEGIX"
        monkeypatch.setattr(tsv, "build_offsets", None)
        assert ShardReader(path)[3]["id"] == "000000000003"

    @pytest.mark.parametrize("sweep", [1, 2, 7, 1 << 24])
    def test_lines_are_found_across_blocks(self, tmp_path, monkeypatch, sweep):
        path = tmp_path / "x.tsv"
        path.write_bytes(b"a\n\nbcd\nlast line without an end")
        monkeypatch.setattr(tsv, "_SWEEP_BYTES", sweep)
        offsets = tsv.build_offsets(path)
        assert offsets.tolist() == [0, 2, 3, 7, path.stat().st_size] and offsets.dtype == np.uint64

    def test_a_long_sweep_shows_its_progress(self, path, monkeypatch, capsys):
        tsv.build_offsets(path)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(tsv, "_QUIET_SECONDS", 0)
        tsv.build_offsets(path)
        assert "indexing val.tsv" in capsys.readouterr().err

    def test_many_rows(self, tmp_path):
        path = tmp_path / "many.tsv"
        path.write_bytes(b"".join(b"AAAA\t%d\n" % k for k in range(100_000)))
        columns = {"image": 0, "id": 1}
        assert [tsv.TsvShard(path, columns, 2).read(k, ("id",))["id"] for k in (0, 54_321, 99_999)] == ["0", "54321", "99999"]
        assert tsv.index_path(path).stat().st_size < 801_000

    def test_writer_leaves_a_valid_index(self, tmp_path, monkeypatch):
        with ShardWriter(tmp_path, "train", VOCABULARY, ("image", "id"), "tsv", rows_per_shard=2) as out:
            for k in range(5):
                out.write({key: make_row(k)[key] for key in ("image", "id")})
        monkeypatch.setattr(tsv, "build_offsets", None)
        assert ShardReader.for_split(tmp_path, "train")[4]["id"] == "sample_4"

    @pytest.mark.parametrize("keep_time", [False, True], ids=["new time", "same time"])
    def test_changed_file_of_equal_size(self, tmp_path, keep_time):
        """Rows of other lengths, the same total size, and even the old modification time."""
        path = official(tmp_path / "val.tsv", count=5)
        ShardReader(path)
        status = os.stat(path)
        lines = open(path, "rb").read().split(b"\n")
        open(path, "wb").write(b"\n".join(lines[::-1]))
        if keep_time:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert os.stat(path).st_size == status.st_size
        assert [ShardReader(path)[k]["id"] for k in range(5)] == [f"{k:012d}" for k in range(5)[::-1]]

    def test_grown_file(self, path):
        assert len(ShardReader(path)) == 4
        with open(path, "ab") as file:
            file.write(b"\n" + official_line(9))
        assert ShardReader(path)[4]["id"] == "000000000009"

    def test_file_that_changes_while_open(self, tmp_path, caplog):
        """The lines themselves give it away: they no longer lie between two line breaks."""
        path = official(tmp_path / "val.tsv", count=6)
        reader = ShardReader(path)
        reader[0]
        lines = open(path, "rb").read().split(b"\n")
        with open(path, "r+b") as file:
            file.write(b"\n".join([lines[0], *lines[:0:-1]]))
        with caplog.at_level(logging.WARNING):
            assert reader.image_size(3) == (5, 9)
            assert [reader[k]["id"] for k in range(6)] == [f"{k:012d}" for k in (0, 5, 4, 3, 2, 1)]
        assert "changed while it was open" in caplog.text

    def test_file_that_shrinks_while_open(self, path):
        reader = ShardReader(path)
        lines = open(path, "rb").read().split(b"\n")
        open(path, "wb").write(b"\n".join(lines[:2]))
        with pytest.raises(ShardError, match="row 3: the file changes while it is being read"):
            reader[3]

    @pytest.mark.parametrize(
        "spoil", [lambda d: b"", lambda d: d[:40], lambda d: d[:-3], lambda d: b"PICKLE__" + d[8:], lambda d: d[:-1] + b"\7"]
    )
    def test_damaged_index_is_built_again(self, path, spoil, caplog):
        ShardReader(path)
        index = tsv.index_path(path)
        index.write_bytes(spoil(index.read_bytes()))
        with caplog.at_level(logging.WARNING):
            assert ShardReader(path)[2]["id"] == "000000000002"
        assert "building it again" in caplog.text
        caplog.clear()
        ShardReader(path)
        assert caplog.text == ""

    def test_read_only_folder(self, path, monkeypatch, caplog):
        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(tsv, "atomic_write", refuse)
        with caplog.at_level(logging.WARNING):
            reader = ShardReader(path)
        assert reader[3]["id"] == "000000000003" and not tsv.index_path(path).exists()
        assert "keeping the index of 4 rows in memory" in caplog.text
        monkeypatch.setattr(tsv, "build_offsets", None)
        assert pickle.loads(pickle.dumps(reader))[1]["id"] == "000000000001"  # workers need no sweep of their own

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
    def test_read_only_folder_for_real(self, path):
        os.chmod(os.path.dirname(path), 0o555)
        try:
            assert ShardReader(path)[3]["id"] == "000000000003"
        finally:
            os.chmod(os.path.dirname(path), 0o755)

    def test_large_file_hash_is_sampled(self, tmp_path):
        path = tmp_path / "large.bin"
        path.write_bytes(bytes(1 << 20))
        with open(path, "rb") as file:
            before = tsv.fingerprint(file, 1 << 20)
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        with open(path, "rb") as file:
            assert tsv.fingerprint(file, 1 << 20) != before


class TestFaults:
    """Every error names file, row and column, and the rows around it stay readable."""

    def expect(self, path, row, column, match):
        reader = ShardReader(path)
        with pytest.raises(ShardError, match=match) as caught:
            reader[row]
        assert (caught.value.file, caught.value.row, caught.value.column) == (path, row, column)
        assert str(caught.value).startswith(f"{path}, row {row}")
        for other in {0, 3} - {row}:
            assert reader[other]["id"] == f"{other:012d}"

    def test_bad_base64(self, path):
        self.expect(damage(path, 2, lambda line: b"*" + line), 2, "image", "column image: not valid base64 .*write the row again")

    def test_bad_label_base64(self, path):
        self.expect(damage(path, 1, lambda line: line.replace(b"\t", b"\t!", 1)), 1, "label_map", "column label_map: not valid base64")

    def test_nul_bytes(self, path):
        self.expect(damage(path, 1, lambda line: line[:9] + bytes(4) + line[13:]), 1, "image", "NUL")

    def test_byte_order_mark(self, path):
        self.expect(damage(path, 0, lambda line: b"\xef\xbb\xbf" + line), 0, "image", "byte order mark")

    def test_missing_column(self, path):
        self.expect(damage(path, 1, lambda line: line.split(b"\t")[0]), 1, "", "line 2 has 1 columns, expected at least 3")

    def test_empty_line(self, path):
        self.expect(damage(path, 1, lambda line: b""), 1, "", "line 2 is empty; remove it")

    def test_empty_image(self, path):
        self.expect(damage(path, 2, lambda line: line[line.index(b"\t") :]), 2, "image", "the field is empty")

    def test_id_of_other_encoding(self, path):
        damage(path, 2, lambda line: line.replace(b"000000000002", b"\xff\xfe"))
        self.expect(path, 2, "id", "column id: .*utf-8.*write the row again")

    def test_truncated_last_row(self, path):
        data = open(path, "rb").read()
        open(path, "wb").write(data[: data.rindex(b"\n") + 20])
        self.expect(path, 3, "", "line 4 has 1 columns")

    def test_bad_header_of_image(self, path):
        reader = ShardReader(damage(path, 2, lambda line: base64.b64encode(b"<html>") + line[line.index(b"\t") :]))
        with pytest.raises(ShardError, match="row 2, column image: not an image"):
            reader.image_size(2)

    @pytest.mark.parametrize("text", [b"[1", b'{"a": 1}', b'[{"text": "x"}]', b"[3]", b"\xff"])
    def test_bad_boxes(self, tmp_path, text):
        with ShardWriter(tmp_path, "train", VOCABULARY, ("image", "id", "boxes"), "tsv") as out:
            out.write({key: make_row(1)[key] for key in ("image", "id", "boxes")})
        path = str(tmp_path / "train-00000-of-00001.tsv")
        damage(path, 0, lambda line: b"\t".join(line.split(b"\t")[:2] + [text]))
        with pytest.raises(ShardError, match="row 0, column boxes"):
            ShardReader(path)[0]

    def test_a_box_without_text_is_not_described_as_none(self, tmp_path):
        with ShardWriter(tmp_path, "train", VOCABULARY, ("image", "id", "boxes"), "tsv") as writer:
            writer.write({name: make_row(2)[name] for name in ("image", "id", "boxes")})
        path = tmp_path / "train-00000-of-00001.tsv"
        path.write_bytes(path.read_bytes().replace(b'"text":"a car"', b'"text":null'))
        assert [box["text"] for box in ShardReader(str(path))[0]["boxes"]] == ["", ""]

    def test_wrong_number_of_columns_in_own_file(self, tmp_path):
        with ShardWriter(tmp_path, "train", VOCABULARY, ("image", "id"), "tsv") as out:
            out.write({key: make_row(1)[key] for key in ("image", "id")})
        path = damage(str(tmp_path / "train-00000-of-00001.tsv"), 0, lambda line: line + b"\textra")
        with pytest.raises(ShardError, match="line 1 has 3 columns, expected 2 .image, id."):
            ShardReader(path)[0]

    def test_empty_file(self, tmp_path):
        (tmp_path / "train.tsv").write_bytes(b"")
        with pytest.raises(ShardError, match="train.tsv: the file is empty"):
            ShardReader(str(tmp_path / "train.tsv"))

    def test_no_tabs(self, tmp_path):
        (tmp_path / "train.tsv").write_bytes(b"hello\n")
        with pytest.raises(ShardError, match="one column, expected image, label map, id"):
            ShardReader(str(tmp_path / "train.tsv"))

    def test_missing_file_lists_near_names(self, path):
        with pytest.raises(ShardError, match=r"vall.tsv: no such file .did you mean val.tsv"):
            ShardReader(path.replace("val.tsv", "vall.tsv"))
        with pytest.raises(ShardError, match=r"no such file .there is val.tsv"):
            ShardReader(os.path.join(os.path.dirname(path), "train-*-of-*.parquet"))

    def test_folder_instead_of_file(self, path):
        with pytest.raises(ShardError, match="for_split"):
            ShardReader(os.path.dirname(path))

    def test_nothing_given(self):
        with pytest.raises(ShardError, match="at least one"):
            ShardReader([])

    def test_the_error_survives_pickling(self, path):
        with pytest.raises(ShardError) as caught:
            ShardReader(damage(path, 2, lambda line: b"*" + line))[2]
        error = caught.value
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.row, copy.column) == (str(error), 2, "image")
        assert str(ShardError(str(error))) == str(error)  # how a data loader raises it again
