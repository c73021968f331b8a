"""Dictionaries of whole words cover the source text of a run, and nothing else."""

import pytest

from ofaseg.tokenizers import TokenizerError, build_dictionary, build_tokenizer, encode_text
from tests.toy import write_toy_shards
from tools.word_dictionary import main
from user_tasks.seq2seq_segmentation import Seq2SeqSegmentationConfig, Seq2SeqSegmentationTask


def test_a_task_reads_its_source_text(tmp_path, capsys):
    write_toy_shards(tmp_path / "shards", "val", 1, names=("Traffic light", "light bulb", "sky"))
    assert main([str(tmp_path / "shards"), "--out", str(tmp_path / "words")]) == 0
    words = [line.split()[0] for line in (tmp_path / "words" / "dict.txt").read_text().splitlines()]
    assert len(words) == len(set(words)) and words[-4:] == ["traffic", "light", "bulb", "sky"] and "unknown" in words
    cfg = Seq2SeqSegmentationConfig(data=str(tmp_path / "shards"), bpe_dir=str(tmp_path / "words"), code_dict_size=0, num_bins=4)
    cfg.seed = 1
    task = Seq2SeqSegmentationTask.setup_task(cfg)
    assert [len(ids) for ids in task.class_token_ids] == [2, 2, 1]
    tokenizer = build_tokenizer(str(tmp_path / "words"))
    with pytest.raises(TokenizerError, match="horse"):
        encode_text("horse", tokenizer, build_dictionary(str(tmp_path / "words"), tokenizer, 0, 4, 3))


def test_a_folder_without_class_names_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "words")]) == 1
    assert "no vocabulary.json" in capsys.readouterr().err and not (tmp_path / "words").exists()
