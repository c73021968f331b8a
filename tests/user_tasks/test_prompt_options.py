"""Prompt tuning and finer names as options of FreeSeg's task: predictions, files, checkpoints, commands."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("open_clip")

from ofaseg.checkpoints import CheckpointError, load_model  # noqa: E402
from ofaseg.checkpoints.export import copy_companions, export_safetensors  # noqa: E402
from ofaseg.cli import main  # noqa: E402
from ofaseg.models.freeseg import architecture_config  # noqa: E402
from ofaseg.subclasses.label_set import LabelSetError  # noqa: E402
from tests.toy import NAMES  # noqa: E402
from tests.toy_freeseg import make_task, vocabulary_of, write_segment_shards  # noqa: E402
from tests.user_tasks.test_unified_segmentation import build  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

NOVEL = vocabulary_of(novel=(True, False, True))
TUNING = dict(tuning_steps=2, tuning_lr=0.05, tuning_threshold=1.0)
ITSELF = {name: [name] for name in NAMES}
FINER = {"red": ["red car", "crimson"], "green": ["green grass", "lawn", "leaf"], "blue": ["blue sky"]}
OVERRIDES = [f"--override={key}={value}" for key, value in TUNING.items()]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    write_segment_shards(root, "val", 5, sizes=((72, 96), (64, 64)), seed=3, vocabulary=NOVEL)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An exported model whose vocabulary marks two novel classes."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    export(make_task("", NOVEL, without_regions=True), path)
    return path


@torch.no_grad()
def export(task, path) -> None:
    """A model whose queries see different classes: their vectors lie about those of the classes, as after training."""
    model = build(task)
    vectors = model.class_embeddings()
    centre = vectors.mean(0)
    last = model.predictor.class_embed.layers[-1]
    last.bias.copy_(centre)
    spread = (vectors - centre).T @ torch.randn(3, last.in_features)
    last.weight.copy_(0.5 * spread)
    options = vars(architecture_config("freeseg_nano")) | {"_name": "freeseg_nano"}
    cfg = {"model": options, "task": vars(task.cfg) | {"_name": "unified_segmentation"}}
    export_safetensors(model, cfg, path, task.vocabulary)


@pytest.fixture(scope="module")
def photos():
    return torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def scores(task, model, image):
    return task.proposals(model, {"image": image})["semantic"].class_logits[-1]


def write(folder, content) -> str:
    (folder / "names.json").write_text(json.dumps(content))
    return str(folder / "names.json")


# ---- tuning ----


def test_off_unless_asked_for(photos):
    plain, tuned = make_task("", NOVEL, without_regions=True), make_task("", NOVEL, without_regions=True, **TUNING)
    model = build(plain)
    assert plain.tuner is None
    before = scores(plain, model, photos)
    found = scores(tuned, model, photos)
    assert not torch.allclose(found, before, atol=1e-2)
    assert torch.equal(scores(plain, model, photos), before) and torch.equal(scores(tuned, model, photos), found)


def test_which_classes_are_tuned_on(photos):
    """Those marked as novel; all of them when asked, for words that no vocabulary marks; else nothing."""
    model = build(make_task("", without_regions=True))
    plain = scores(make_task("", without_regions=True), model, photos)
    assert torch.equal(scores(make_task("", without_regions=True, **TUNING), model, photos), plain), "no class is marked"
    everything = scores(make_task("", without_regions=True, tuning_classes="all", **TUNING), model, photos)
    marked = scores(make_task("", NOVEL, without_regions=True, **TUNING), model, photos)
    assert not torch.allclose(everything, marked, atol=1e-2) and not torch.allclose(everything, plain, atol=1e-2)


def test_scopes(photos):
    """Per image the order of photos means nothing; over a set it does."""
    model = build(make_task("", NOVEL))
    for scope, alike in (("image", True), ("set", False)):
        one, other = (make_task("", NOVEL, without_regions=True, tuning_scope=scope, **TUNING) for _ in range(2))
        forward, backward = (
            [scores(one, model, photo[None]) for photo in photos],
            [scores(other, model, photo[None]) for photo in photos.flip(0)],
        )
        assert all(torch.equal(a, b) for a, b in zip(forward[1:], backward[::-1][1:])) == alike


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="tuning_threshold 2.0"):
        make_task("", NOVEL, tuning_steps=1, tuning_threshold=2.0)
    with pytest.raises(ValueError, match="tuning_steps -1"):
        make_task("", NOVEL, tuning_steps=-1)


def evaluated(checkpoint, shards, out, *more) -> dict:
    assert main(["evaluate", str(checkpoint), str(shards), "--device", "cpu", "--out", str(out), *more]) == 0
    return json.loads((out / "scores.json").read_text()) | {"matrix": np.load(out / "confusion.npy")}


def test_evaluate_with_tuning(checkpoint, shards, tmp_path):
    """Whatever the batch size the same scores; others than without."""
    plain = evaluated(checkpoint, shards, tmp_path / "plain")
    one = evaluated(checkpoint, shards, tmp_path / "one", *OVERRIDES)
    three = evaluated(checkpoint, shards, tmp_path / "three", *OVERRIDES, "--batch-size", "3")
    assert np.array_equal(one["matrix"], three["matrix"]) and not np.array_equal(one["matrix"], plain["matrix"])
    whole = evaluated(checkpoint, shards, tmp_path / "set", *OVERRIDES, "--override", "tuning_scope=set")
    assert not np.array_equal(whole["matrix"], one["matrix"])


def evaluate_on_rank(rank, arguments, port):
    import os

    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    assert main(arguments) == 0


@pytest.mark.slow  # two processes import everything anew
def test_two_processes_score_as_one(checkpoint, shards, tmp_path):
    one = evaluated(checkpoint, shards, tmp_path / "one", *OVERRIDES)
    arguments = ["evaluate", str(checkpoint), str(shards), "--device", "cpu", "--out", str(tmp_path / "two"), *OVERRIDES]
    torch.multiprocessing.spawn(evaluate_on_rank, (arguments, 29731), nprocs=2)
    assert np.array_equal(np.load(tmp_path / "two" / "confusion.npy"), one["matrix"])


def predicted(checkpoint, tmp_path, out, *more) -> np.ndarray:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(photo)
    command = ["predict", str(photo), "--checkpoint", str(checkpoint), "--class-names", ",".join(NAMES), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / out), *more]) == 0
    return np.asarray(Image.open(tmp_path / out / "photo_index.png"))


def test_predict_with_own_words_and_tuning(checkpoint, tmp_path, caplog):
    plain = predicted(checkpoint, tmp_path, "plain")
    assert np.array_equal(predicted(checkpoint, tmp_path, "none", *OVERRIDES), plain) and "tuning_classes=all" in caplog.text
    assert not np.array_equal(predicted(checkpoint, tmp_path, "all", *OVERRIDES, "--override", "tuning_classes=all"), plain)


# ---- finer names ----


@torch.no_grad()
def test_class_vectors_are_means_of_unit_vectors(tmp_path):
    """Each name in the learned prompts, as a class of its own would be read; superclass_mean counts the class name as one more."""
    plain = make_task("")
    model = build(plain)
    names = model.class_embeddings("panoptic").clone()
    model.set_classes(plain.prompts_of([name for own in FINER.values() for name in own]))
    parts = model.class_embeddings("panoptic").split([len(own) for own in FINER.values()])
    for fusion in ("mean", "superclass_mean"):
        task = make_task("", subclasses=write(tmp_path, FINER), fusion=fusion)
        found = build(task).class_embeddings("panoptic")
        for k, part in enumerate(parts):
            own = part if fusion == "mean" else torch.cat([names[k : k + 1], part])
            torch.testing.assert_close(found[k], torch.nn.functional.normalize(own.mean(0), dim=0), atol=1e-5, rtol=0)
    assert not torch.allclose(found, names, atol=1e-2)


@torch.no_grad()
def test_names_that_change_nothing(tmp_path):
    """The class itself, an order of classes or of names, repetitions in other spellings, and names of a file that was left out again."""

    def vectors(content, **options):
        return build(make_task("", subclasses=write(tmp_path, content), **options)).class_embeddings()

    plain = build(make_task("")).class_embeddings()
    torch.testing.assert_close(vectors(ITSELF), plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors(ITSELF, fusion="mean"), plain, atol=1e-6, rtol=0)
    finer = vectors(FINER)
    turned = {name: FINER[name][::-1] for name in reversed(FINER)}
    torch.testing.assert_close(vectors(turned), finer, atol=1e-5, rtol=0)
    repeated = {name: [*own, own[0].upper(), f" {own[-1]}"] for name, own in FINER.items()}
    torch.testing.assert_close(vectors(repeated), finer, atol=1e-5, rtol=0)
    mixed = {"red": FINER["blue"], "green": FINER["green"], "blue": FINER["red"]}
    assert not torch.allclose(vectors(mixed), finer, atol=1e-2)


@torch.no_grad()
def test_kept_vectors_follow_the_names(tmp_path):
    task, plain = make_task("", subclasses=write(tmp_path, FINER)), make_task("")
    model = build(task)
    finer = model.class_embeddings().clone()
    plain.give_classes(model)
    torch.testing.assert_close(model.class_embeddings(), build(plain).class_embeddings())
    task.give_classes(model)
    torch.testing.assert_close(model.class_embeddings(), finer)
    before = model.prompted_embeddings("semantic", model.prompt.class_prompt, torch.tensor([0, 2]))
    torch.testing.assert_close(before, finer[[0, 2]], atol=1e-5, rtol=0)


def test_finer_names_are_trained_and_tuned_with(tmp_path, photos):
    task = make_task("", NOVEL, subclasses=write(tmp_path, FINER), without_regions=True, **TUNING)
    model = build(task)
    vectors = model.class_embeddings()
    vectors[:, 0].sum().backward()
    assert model.prompt.class_prompt.grad.any() and torch.allclose(vectors.norm(dim=1), torch.ones(3))
    plain = make_task("", NOVEL, subclasses=write(tmp_path, FINER), without_regions=True)
    assert not torch.allclose(scores(task, model, photos), scores(plain, model, photos), atol=1e-2)


def test_names_that_cannot_be(tmp_path):
    with pytest.raises(LabelSetError, match="has no entry for 'blue'"):
        make_task("", subclasses=write(tmp_path, {"red": ["a"], "green": ["b"]}))
    too_long = write(tmp_path, FINER | {"green": ["lawn", "very " * 50 + "green"]})
    with pytest.raises(LabelSetError, match=r"names.json: the name of class 1 .from 0. has 51 tokens; at most 45 fit .*shorten it"):
        build(make_task("", subclasses=too_long))
    with pytest.raises(ValueError, match="words of 2 classes for a model of 3 classes"):
        build(make_task("")).set_class_words([[[5]], [[6]]])
    with pytest.raises(ValueError, match="each needs a name"):
        build(make_task("")).set_class_words([[[5]], [], [[6]]])
    with pytest.raises(ValueError, match="class 1 has an empty name"):
        build(make_task("")).set_class_words([[[5]], [[6], []], [[6]]])


def test_commands_take_finer_names(checkpoint, shards, tmp_path):
    finer, itself = write(tmp_path, FINER), tmp_path / "itself.json"
    itself.write_text(json.dumps(ITSELF))
    plain = evaluated(checkpoint, shards, tmp_path / "a")["matrix"]
    assert np.array_equal(evaluated(checkpoint, shards, tmp_path / "b", "--subclasses", str(itself))["matrix"], plain)
    assert not np.array_equal(evaluated(checkpoint, shards, tmp_path / "c", "--subclasses", finer)["matrix"], plain)
    shown = predicted(checkpoint, tmp_path, "d")
    assert np.array_equal(predicted(checkpoint, tmp_path, "e", "--subclasses", str(itself)), shown)
    assert not np.array_equal(predicted(checkpoint, tmp_path, "f", "--subclasses", finer, "--fusion", "mean"), shown)
    assert main(["evaluate", str(checkpoint), str(shards), "--device", "cpu", "--subclasses", finer, "--fusion", "softmax"]) == 2


@torch.no_grad()
def test_a_model_keeps_its_finer_names(tmp_path):
    """Its file lies beside the exported model; with other class names it plays no part."""
    task = make_task("", subclasses=write(tmp_path, FINER), without_regions=True)
    folder = tmp_path / "export"
    folder.mkdir()
    export(task, folder / "model.safetensors")
    assert [path.name for path in copy_companions(task.cfg, folder)] == ["names.json"]
    (tmp_path / "names.json").unlink()
    model, restored = load_model(folder / "model.safetensors")
    torch.testing.assert_close(model.class_embeddings(), build(task).class_embeddings())
    assert restored.cfg.subclasses.endswith("names.json")
    other, _ = load_model(folder / "model.safetensors", class_names="cat,dog")
    assert [len(own) for own in other.words] == [1, 1]
    (folder / "names.json").unlink()
    with pytest.raises((CheckpointError, LabelSetError), match="names.json: no such label set"):
        load_model(folder / "model.safetensors")
