"""The commands with a real checkpoint file: exported nano model, loaded the ordinary way."""

import json

import pytest
import torch

from ofaseg.cli import main
from tests.toy import NAMES, PROMPT_WORDS, write_toy_shards, write_words


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of shards, exported untrained nano model) with the tokenizer beside the model."""
    from ofaseg.checkpoints import export_safetensors
    from ofaseg.models.ifseg import SegOFA, architecture_config
    from user_tasks.seq2seq_segmentation import Seq2SeqSegmentationConfig, Seq2SeqSegmentationTask

    folder = tmp_path_factory.mktemp("real")
    vocabulary = write_toy_shards(folder / "shards", "val", 5, sizes=((32, 48), (40, 32)), file_format="parquet")
    words = write_words(folder / "words", [*PROMPT_WORDS, *NAMES, "cat", "dog"])
    options = dict(data=str(folder / "shards"), bpe_dir=words, patch_image_size=32, code_dict_size=0, num_bins=4, seed=1)
    task = Seq2SeqSegmentationTask.setup_task(Seq2SeqSegmentationConfig(**options))
    torch.manual_seed(0)
    config = architecture_config("segofa_nano", patch_image_size=32, orig_patch_image_size=32, num_bins=4)
    model = SegOFA(config, len(task.source_dictionary) - len(NAMES), task.class_token_ids)
    cfg = {"model": vars(config) | {"_name": "segofa"}, "task": vars(task.cfg) | {"_name": "seq2seq_segmentation"}}
    export_safetensors(model, cfg, folder / "nano.safetensors", vocabulary)
    return folder / "shards", folder / "nano.safetensors"


def test_evaluate_in_any_batch_size(exported, tmp_path):
    shards, checkpoint = exported
    scores = []
    for batch_size in (1, 3):
        more = ["--batch-size", str(batch_size), "--resnet-iters", "2", "--flip", "--out", str(tmp_path / "out")]
        assert main(["evaluate", str(checkpoint), str(shards), "--device", "cpu", *more]) == 0
        scores.append(json.loads((tmp_path / "out" / "scores.json").read_text()))
    assert scores[0]["images"] == 5 and scores[0]["aAcc"] == pytest.approx(scores[1]["aAcc"], abs=2e-3)


def test_predict_words_it_was_not_trained_on(exported, tmp_path):
    shards, checkpoint = exported
    example = tmp_path / "x.png"
    from PIL import Image

    Image.effect_noise((50, 40), 80).convert("RGB").save(example)
    command = ["predict", str(example), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--class-names", "cat, dog"]) == 0
    about = json.loads((tmp_path / "out" / "x.json").read_text())
    assert about["class_names"] == ["cat", "dog"] and (about["height"], about["width"]) == (40, 50)
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "x.json").read_text())["class_names"] == list(NAMES)
    assert main([*command, "--override", "no_such_option=1"]) == 2
