"""The task around prompt learning: regions of base classes, targets, validation, the published order, files."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("open_clip")

from criterions.region_cross_entropy import RegionCrossEntropy  # noqa: E402
from ofaseg.checkpoints import CheckpointError, load_model  # noqa: E402
from ofaseg.checkpoints.freeseg import export_official_prompts  # noqa: E402
from ofaseg.data.shards import ShardError  # noqa: E402
from ofaseg.evaluation.classification import accuracies  # noqa: E402
from ofaseg.vocabulary import VocabularyError  # noqa: E402
from tests.toy_freeseg import vocabulary_of, write_segment_shards  # noqa: E402
from tests.toy_prompts import build, make_task  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

NOVEL = vocabulary_of(novel=(False, True, False))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for split in ("train", "val"):
        write_segment_shards(root, split, 5, seed=len(split), vocabulary=NOVEL)
    return root


@pytest.fixture(scope="module")
def loaded(shards):
    """(task, model) with both splits opened, validation last."""
    task = make_task(shards, NOVEL, samples_per_class=3)
    model = build(task)
    for split in ("train", "val"):
        task.load_dataset(split)
    return task, model


def batch_of(task, split, rows=range(6)):
    data = task.datasets[split]
    return data.collater([data[k] for k in rows])


def test_base_classes_are_trained_and_all_are_scored(loaded):
    task, _ = loaded
    train, val = task.datasets["train"], task.datasets["val"]
    assert set(train.regions.classes) == {0, 2} and set(val.regions.classes) == {0, 1, 2}
    kinds = list(zip(train.regions.tasks.tolist(), train.regions.classes.tolist()))
    assert max(kinds.count(kind) for kind in kinds) == 3 and len(set(kinds)) == 5  # the blue ground is no instance
    batch = task.among_trained(batch_of(task, "train"))
    classes = batch_of(task, "train")["target"]
    assert batch["net_input"]["class_rows"].tolist() == [0, 2] and torch.equal(batch["target"], classes // 2)
    everything = make_task(task.cfg.data, vocabulary_of())
    assert "class_rows" not in everything.among_trained(batch_of(task, "train"))["net_input"]


def test_a_step_moves_only_prompts(loaded):
    task, model = loaded
    optimizer = SimpleNamespace(backward=lambda loss: loss.backward())
    model.zero_grad()
    loss, regions, log = task.train_step(batch_of(task, "train"), model, RegionCrossEntropy(task), optimizer, 1)
    assert regions == 6 and loss > 0 and log["_bad_training_rows"] == 0
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["prompt.class_prompt", "prompt.task_prompt"]
    model.zero_grad()
    repeated = batch_of(task, "val")  # a process without a batch repeats one of what was opened last
    assert (repeated["target"] == 1).any()
    task.train_step(repeated, model, RegionCrossEntropy(task), optimizer, 1, ignore_grad=True)
    assert not any(p.grad.any() for p in model.prompt.parameters())


@torch.no_grad()
def test_validation(loaded):
    """Counts are those of the model's logits over all classes; a batch without rows has the same entries."""
    task, model = loaded
    criterion = RegionCrossEntropy(task)
    data = task.datasets["val"]
    whole = batch_of(task, "val", range(len(data)))
    loss, regions, log = task.valid_step(whole, model, criterion)
    logits = model.eval()(**whole["net_input"])
    right, target = logits.argmax(1) == whole["target"], whole["target"]
    scores = accuracies(log["_hits"].tolist())
    assert regions == len(data) and logits.shape == (len(data), 3)
    assert scores["acc_top1"] == pytest.approx(right.float().mean().item())
    assert scores["acc_top1_novel"] == pytest.approx(right[target == 1].float().mean().item()) and scores["acc_top5"] == 1
    assert scores["acc_top1_base"] == pytest.approx(right[target != 1].float().mean().item())
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
    empty = {"nsentences": 0, "bad_rows": ["gone"], "net_input": {}, "id": torch.zeros(0)}
    nothing = task.valid_step(empty, model, criterion)[2]
    assert list(nothing) == list(log) and not nothing["_hits"].any()


def test_published_defects_are_options(shards):
    task = make_task(shards, NOVEL, class_sorted=True, task_of_first=True, tall_crops=True)
    build(task)
    task.load_dataset("train")
    data = task.datasets["train"]
    assert data[0]["image"].shape == (3, 32 * 244 // 224, 32)
    iterator = task.get_batch_iterator(data, max_sentences=2, seed=1)
    ids = [k for batch in iterator.next_epoch_itr(shuffle=True) for k in batch["id"].tolist()]
    assert ids == list(range(len(data)))
    plain = make_task(shards, NOVEL)
    build(plain)
    plain.load_dataset("train")
    shuffled = plain.get_batch_iterator(plain.datasets["train"], max_sentences=2, seed=1).next_epoch_itr(shuffle=True)
    ids = [k for batch in shuffled for k in batch["id"].tolist()]
    assert sorted(ids) == list(range(len(ids))) != ids and plain.datasets["train"][0]["image"].shape == (3, 32, 32)


def test_the_training_split_of_voc_has_another_name(tmp_path):
    """Its regions are those of base classes, and a process without a batch repeats one of them."""
    for split in ("train_aug", "val"):
        write_segment_shards(tmp_path, split, 3, seed=4, vocabulary=NOVEL)
    task = make_task(tmp_path, NOVEL, tasks="semantic")
    build(task)
    for split in ("train_aug", "val"):
        task.load_dataset(split)
    assert task.datasets["train_aug"].training and not task.datasets["val"].training
    assert set(task.first_training_batch(torch.device("cpu"))["target"].tolist()) <= {0, 2}


def test_weights_to_start_from(tmp_path, shards):
    """`--pretrained` takes the published layout; CLIP comes with it."""
    model = build(make_task(shards))
    model.prompt.class_prompt.data.fill_(0.25)
    export_official_prompts(model, tmp_path / "official.pth")
    other = build(make_task(shards, random_towers=False, pretrained=str(tmp_path / "official.pth")))
    assert (other.prompt.class_prompt == 0.25).all() and torch.equal(other.clip.ln_final.weight, model.clip.ln_final.weight)


def test_what_cannot_be(tmp_path, shards):
    with pytest.raises(VocabularyError, match="marks no class as a thing"):
        make_task(shards, vocabulary_of(thing=()))
    assert make_task(shards, vocabulary_of(thing=()), tasks="semantic,panoptic").tasks == ("semantic", "panoptic")
    with pytest.raises(VocabularyError, match="marks every class as novel"):
        make_task(shards, vocabulary_of(novel=(True, True, True)))
    with pytest.raises(ValueError, match="--samples-per-class -1"):
        make_task(shards, samples_per_class=-1)
    with pytest.raises(CheckpointError, match="give --clip-checkpoint"):
        build(make_task(shards, random_towers=False))
    write_segment_shards(tmp_path, "train", 2, vocabulary=vocabulary_of(thing=(False, False, True), novel=(False, False, True)))
    task = make_task(tmp_path, vocabulary_of(thing=(False, False, True), novel=(False, False, True)), tasks="instance")
    build(task)
    with pytest.raises(ShardError, match="no regions of base classes"):
        task.load_dataset("train")


def test_frozen_towers_come_from_a_file(tmp_path, shards):
    from tests.checkpoints.clip_files import nano_state, openai_state

    torch.save(openai_state(nano_state()), tmp_path / "clip.pt")
    model = build(make_task(shards, random_towers=False, clip_checkpoint=str(tmp_path / "clip.pt")))
    torch.testing.assert_close(model.clip.ln_final.weight, nano_state()["ln_final.weight"])
    assert torch.equal(model.prompt.end_signal[0], model.clip.token_embedding.weight[49407])
    torch.save({"model": model.state_dict()}, tmp_path / "prompts.pt")
    with pytest.raises(CheckpointError, match="learned prompts alone"):
        load_model(tmp_path / "prompts.pt", class_names="cat,dog")
