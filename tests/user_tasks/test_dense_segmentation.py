"""The task around SimSeg: prompts, how classes are chosen, and IFSeg's checkpoints with refined classes."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from ofaseg.cli import main
from ofaseg.evaluation.zero_shot_settings import SettingsError, load_settings
from ofaseg.vocabulary import ClassVocabulary
from tests.integration.pair_jobs import SPECIAL_TOKENS
from user_tasks.dense_segmentation import DenseSegmentationConfig, DenseSegmentationTask

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = (*SPECIAL_TOKENS, *"a the photo of cat dog sky background .".split())


def make_task(folder, names, **options):
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    cfg = DenseSegmentationConfig(data="", bert_vocab=str(folder), **({"templates": "photo"} | options))
    return DenseSegmentationTask(cfg, ClassVocabulary(tuple(names), source="test"))


def ids(text):
    return [WORDS.index(word) for word in f"[CLS] {text} [SEP]".split()]


def test_prompts_stand_class_by_class_and_template_by_template(tmp_path):
    (tmp_path / "own.txt").write_text("a photo of a {}.\n{}\nthe {} sky\n")
    task = make_task(tmp_path, ("cat", "dog sky"), templates=str(tmp_path / "own.txt"))
    assert task.class_prompts == [
        [ids("a photo of a cat ."), ids("cat"), ids("the cat sky")],
        [ids("a photo of a dog sky ."), ids("dog sky"), ids("the dog sky sky")],
    ]


def test_long_prompts_are_cut_and_keep_their_end(tmp_path):
    assert make_task(tmp_path, ("cat dog sky",), text_length=6).class_prompts == [[ids("a photo of a")]]


@pytest.mark.parametrize(
    "names, zero_shot, settings, refine",
    [
        (("Background", "cat", "dog"), "auto", "pascal_voc", "dense_crf"),
        (("cat", "dog", "background"), "auto", None, "none"),
        (("cat", "dog", "sky"), "pascal_context", "pascal_context", "dense_crf"),
        (("background", "cat", "dog"), "dense", None, "none"),
    ],
)
def test_how_classes_are_chosen(tmp_path, names, zero_shot, settings, refine):
    task = make_task(tmp_path, names, zero_shot=zero_shot)
    expected = None if settings is None else load_settings(settings)
    assert task.zero_shot == expected
    assert (task.post_process().candidates, task.post_process().refine) == (expected, refine)
    quick = task.validation_posts()["_confusion"]
    assert quick.candidates == expected and quick.refine == ("none" if settings is None else "threshold")


def test_new_class_names_decide_anew(tmp_path):
    task = make_task(tmp_path, ("background", "cat", "dog"))
    task.set_class_names(ClassVocabulary(("cat", "sky"), source="test"))
    assert task.zero_shot is None and task.class_prompts == [[ids("a photo of a cat .")], [ids("a photo of a sky .")]]
    task.set_class_names(ClassVocabulary(("background", "sky", "cat"), source="test"))
    assert task.zero_shot == load_settings("pascal_voc")


def test_two_classes_are_too_few_to_choose_from(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        make_task(tmp_path, ("background", "cat", "dog"))
    assert "too few" not in caplog.text and "of 3 classes the published rule finds 1 in a photo" in caplog.text
    with caplog.at_level(logging.WARNING):
        make_task(tmp_path, ("background", "cat"))
    assert "2 classes are too few to choose from" in caplog.text and "zero_shot=dense" in caplog.text


def test_unknown_settings_are_an_error(tmp_path):
    with pytest.raises(SettingsError, match="no zero-shot settings named 'ade20k'"):
        make_task(tmp_path, ("background", "cat", "dog"), zero_shot="ade20k")


def test_photos_become_squares(tmp_path):
    task = make_task(tmp_path, ("cat", "dog"), patch_image_size=64)
    batch = task.encode_image_for_predict(np.zeros((30, 90, 3), dtype=np.uint8))
    assert batch["net_input"]["image"].shape == (1, 3, 64, 64) and list(batch["native_sizes"][0]) == [30, 90]
    assert task.evaluation_size(30, 90) == (64, 64)


@pytest.mark.parametrize("refine", ["dense_crf", "pamr"])
def test_a_model_of_another_method_refines_its_classes(tmp_path, refine):
    """The shipped IFSeg model: the same photo with and without, of one size and of the same class list."""
    from ofaseg.checkpoints.restore import ASSETS

    rng = np.random.default_rng(0)
    photo = np.repeat(np.repeat(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), 20, 0), 20, 1)
    Image.fromarray(photo).save(tmp_path / "x.png")
    command = ["predict", str(tmp_path / "x.png"), "--checkpoint", str(ASSETS / "shapes" / "segofa_nano.safetensors"), "--device", "cpu"]
    maps = {}
    for name in ("none", refine):
        assert main([*command, "--out", str(tmp_path / name), "--refine", name]) == 0
        maps[name] = np.array(Image.open(tmp_path / name / "x_index.png"))
        assert json.loads((tmp_path / name / "x.json").read_text())["post_process"]["refine"] == name
    assert maps[refine].shape == (60, 80) and set(np.unique(maps[refine])) <= set(range(17))
    assert 0 < (maps[refine] != maps["none"]).mean() < 0.5
    assert main([*command, "--out", str(tmp_path / "no"), "--refine", "threshold"]) == 2, "cuts single maps only; said once, not per photo"


def test_a_refinement_whose_package_is_absent_is_one_message(tmp_path, capsys, monkeypatch):
    """A SimSeg model with a background class, so that masks are asked for; as if nobody had built pydensecrf."""
    import sys

    import torch

    from ofaseg.checkpoints import simseg
    from ofaseg.models.simseg import SimSeg, architecture_config
    from tests.models.one_layer import one_layer

    for name in ("pydensecrf", "pydensecrf.densecrf"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(simseg.WIDTHS, 128, "simseg_nano")
    monkeypatch.setattr("ofaseg.evaluation.candidates.candidate_classes", lambda scores, settings: [(1, 1.0)])
    make_task(tmp_path, ("background", "cat"))
    with one_layer():
        torch.manual_seed(0)
        simseg.export_official(SimSeg(architecture_config("simseg_nano"), len(WORDS)), tmp_path / "simseg.pth")
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "x.png")
        command = ["predict", str(tmp_path / "x.png"), "--checkpoint", str(tmp_path / "simseg.pth"), "--device", "cpu"]
        command += ["--class-names", "background, cat, dog", "--refine", "pydensecrf", "--out", str(tmp_path / "out")]
        assert main([*command, "--override", "patch_image_size=96"]) == 2
    assert 'error: the refinement "pydensecrf" needs the package pydensecrf' in capsys.readouterr().err
