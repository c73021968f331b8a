"""Finer names of classes as an option of the tasks: files, prompts, words, thresholds."""

import json
import logging

import pytest

from data_prep.paired import read_class_names
from ofaseg.evaluation.zero_shot_settings import load_settings
from ofaseg.subclasses.label_set import LabelSet, LabelSetError
from ofaseg.tokenizers import TokenizerError
from tests.user_tasks.test_dense_segmentation import ids, make_task
from user_tasks import subclass_options
from user_tasks.dense_segmentation import DenseSegmentationConfig
from user_tasks.seq2seq_segmentation import Seq2SeqSegmentationConfig

NAMES = ("background", "cat", "dog")
SETS = {"background": ["sky"], "cat": ["cat sky", "Cat  sky", "a_cat"], "dog": ["photo dog"]}


def write(folder, content) -> str:
    (folder / "names.json").write_text(json.dumps(content))
    return str(folder / "names.json")


def test_prompts_stand_by_class_whatever_the_order_of_the_file(tmp_path):
    reordered = {name: SETS[name] for name in ("dog", "background", "cat")}
    for content in (SETS, reordered):
        task = make_task(tmp_path, NAMES, subclasses=write(tmp_path, content), fusion="mean", subclass_temperature=0.2)
        found = task.subclass_prompts
        assert found.prompts == [
            [[ids("a photo of a sky .")]],
            [[ids("a photo of a cat sky .")], [ids("a photo of a a cat .")]],
            [[ids("a photo of a photo dog .")]],
        ]
        assert (found.rule, found.temperature, found.counts) == ("mean", 0.2, [1, 2, 1])


def test_exact_names_keep_repetitions(tmp_path):
    task = make_task(tmp_path, NAMES, subclasses=write(tmp_path, SETS), exact_subclasses=True)
    assert task.subclass_prompts.counts == [1, 3, 1]


def test_names_come_and_go_with_the_classes(tmp_path):
    from ofaseg.vocabulary import ClassVocabulary

    task = make_task(tmp_path, NAMES, subclasses=write(tmp_path, SETS))
    with pytest.raises(LabelSetError, match="not asked for: 'dog'"):
        task.set_class_names(ClassVocabulary(("background", "cat"), source="test"))
    assert make_task(tmp_path, NAMES).subclass_prompts is None


def test_mistakes_name_file_and_class(tmp_path):
    with pytest.raises(LabelSetError, match=r"names.json: has no entry for 'dog'"):
        make_task(tmp_path, NAMES, subclasses=write(tmp_path, {"background": ["sky"], "cat": ["cat sky"]}))
    with pytest.raises(LabelSetError, match="no such label set"):
        make_task(tmp_path, NAMES, subclasses=str(tmp_path / "absent.json"))
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        make_task(tmp_path, NAMES, subclasses=write(tmp_path, SETS), subclass_temperature=0)


def test_scores_under_the_threshold(tmp_path):
    published = load_settings("pascal_voc")
    task = make_task(tmp_path, NAMES, top_m=7)
    assert task.zero_shot.top_m == 7 and published.top_m == 10
    assert (task.zero_shot.candidates, task.zero_shot.background_class) == (published.candidates, published.background_class)
    with pytest.raises(ValueError, match="top_m 3: the threshold needs at least 5 scores"):
        make_task(tmp_path, NAMES, top_m=3)


# -- words of IFSeg ----------------------------------------------------------------------------------------------------


def encode(text):
    known = {"cat": 1, "dog": 2, "big": 3, "old": 4}
    try:
        return [known[word] for word in text.split()]
    except KeyError as error:
        raise TokenizerError(f"{error} is not in the dictionary") from error


@pytest.mark.parametrize(
    "fusion, words",
    [("mean", [[[3, 1], [4, 1]], [[2]]]), ("superclass_mean", [[[1], [3, 1], [4, 1]], [[2]]])],
)
def test_class_words_leave_unknown_names_out(fusion, words, caplog):
    names = LabelSet({"cat": ["big cat", "old cat", "striped cat"], "dog": ["striped dog"]})
    with caplog.at_level(logging.WARNING):
        assert subclass_options.class_words(Seq2SeqSegmentationConfig(data="", fusion=fusion), names, encode) == words
    assert "2 names have words that the dictionary lacks and are left out: striped cat, striped dog" in caplog.text


def test_words_have_no_photo_to_weigh_by():
    with pytest.raises(LabelSetError, match="fusion softmax: this model makes class words without a photo; use mean or superclass_mean"):
        subclass_options.class_words(DenseSegmentationConfig(data=""), LabelSet({"cat": ["big cat"]}), encode)


@pytest.mark.parametrize(
    "file, vocabulary, subclasses",
    [("pascal_voc", "voc21", 105), ("pascal_context", "context60", 296), ("coco_stuff", "coco_object81", 401)],
)
def test_published_sets_fit_the_class_lists_of_the_converters(real_data, tmp_path, file, vocabulary, subclasses):
    names = read_class_names(vocabulary)
    options = {"subclasses": str(real_data / "llm_subclasses" / f"{file}_top5.json"), "exact_subclasses": True}
    found = make_task(tmp_path, names, **options).subclass_prompts
    assert sum(found.counts) == subclasses and len(found.counts) == len(names)
