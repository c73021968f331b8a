"""The vocabulary tool reads the captions of any image-text data."""

from tools.train_wordpiece import main


def test_vocabulary_of_a_list(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"not looked into")
    (tmp_path / "list.csv").write_text("image,caption\na.jpg,a red fish on the sand\na.jpg,a red boat\n", encoding="utf-8")
    data, out = f"{tmp_path / 'list.csv'}:{tmp_path / 'photos'}", tmp_path / "vocab.txt"
    assert main([data, "--out", str(out), "--size", "60"]) == 0
    pieces = out.read_text(encoding="utf-8").split("\n")
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] and "red" in pieces
    assert "pieces" in capsys.readouterr().out


def test_missing_data_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nothing"), "--out", str(tmp_path / "vocab.txt")]) == 2
    assert "nothing" in capsys.readouterr().err and not (tmp_path / "vocab.txt").exists()
