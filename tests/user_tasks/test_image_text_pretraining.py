"""Training steps on pairs: a batch in parts has the gradient of the whole, on one process and on two."""

import pytest
import torch
from fairseq.logging import metrics

from ofaseg.structures import ImageTextOutput
from tests.integration import pair_jobs
from tests.integration.forked import shared_server
from user_tasks.image_text_pretraining import _part_seed

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = 12


def assert_same_step(found: dict, expected: dict, tolerance: float = 5e-6) -> None:
    """Equal within `tolerance` of each entry's largest value."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        if "key.bias" in name:  # shifts all scores of a query alike, so its true gradient is 0
            scale = float(expected[name.replace("bias", "weight")].abs().max())
        assert float((found[name] - value).abs().max()) <= tolerance * scale, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return pair_jobs.step(tmp_path_factory.mktemp("whole"), PAIRS, sub_batch=0)


def test_a_step_trains_every_parameter(whole):
    assert all(value.isfinite().all() for value in whole.values())
    assert [name for name, value in whole.items() if not value.any() and name != "hits" and "key.bias" not in name] == []
    assert float(whole["_temperature"]) == pytest.approx(0.1)


@pytest.mark.parametrize("sub_batch", [5, 6])
def test_parts_have_the_gradient_of_the_whole_batch(whole, tmp_path, sub_batch):
    assert_same_step(pair_jobs.step(tmp_path, PAIRS, sub_batch), whole)


def test_both_passes_draw_the_same_numbers_and_leave_the_others_alone(tmp_path, monkeypatch):
    outputs = []
    forward = pair_jobs.SimSeg.forward

    def note(model, *args, **kwargs):
        outputs.append(forward(model, *args, **kwargs))
        return outputs[-1]

    monkeypatch.setattr(pair_jobs.SimSeg, "forward", note)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    task, model = pair_jobs.make_task(tmp_path, 5), pair_jobs.make_model(dropout=0.3)
    torch.random.set_rng_state(before)
    criterion = pair_jobs.ImageTextContrastive(task, 0.0, False)
    optimizer = pair_jobs.SimpleNamespace(backward=lambda loss: loss.backward())
    for update in (1, 2):
        task.train_step(pair_jobs.make_batch(PAIRS), model, criterion, optimizer, update)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [len(output.image_embedding) for output in outputs] == [5, 5, 2] * 4
    texts = [output.text_embedding.detach() for output in outputs]
    for first, second in ((0, 3), (6, 9)):
        for k in range(3):
            assert torch.equal(texts[first + k], texts[second + k]), "dropout of the two passes differs"
    assert not torch.allclose(texts[0], texts[6], atol=1e-3), "dropout of two updates is the same"


def test_with_dropout_the_gradient_is_that_of_the_vectors_drawn(tmp_path):
    """Autograd through the same parts, their random numbers repeated, without the detour over vectors."""
    task, model = pair_jobs.make_task(tmp_path, 4), pair_jobs.make_model(dropout=0.3)
    criterion = pair_jobs.ImageTextContrastive(task, 0.0, False)
    batch, optimizer = pair_jobs.make_batch(PAIRS), pair_jobs.SimpleNamespace(backward=lambda loss: loss.backward())
    loss, _, _ = task.train_step(batch, model, criterion, optimizer, 2)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    outputs = []
    for k in range(3):
        with _part_seed(task.cfg.seed, 2, k):
            outputs.append(model(**{name: value[4 * k : 4 * k + 4] for name, value in batch["net_input"].items()}))
    image, text = (torch.cat([output[i] for output in outputs]) for i in (0, 1))
    expected = criterion.loss(ImageTextOutput(image, text, outputs[0].temperature))[0]
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_step(found, {name: parameter.grad for name, parameter in model.named_parameters()})


def test_a_fixed_temperature_stays(tmp_path):
    task, model = pair_jobs.make_task(tmp_path, 5), pair_jobs.make_model(dropout=0.0)
    model.temperature.requires_grad_(False)
    criterion = pair_jobs.ImageTextContrastive(task, 0.0, False)
    task.train_step(pair_jobs.make_batch(PAIRS), model, criterion, pair_jobs.SimpleNamespace(backward=lambda loss: loss.backward()), 1)
    assert model.temperature.grad is None and model.text_projection.weight.grad.any()


def test_texts_longer_than_the_tower_reads_are_named(tmp_path):
    task = pair_jobs.make_task(tmp_path)
    task.cfg.text_length = 65
    with pytest.raises(ValueError, match="--text-length 65: the text tower bert_nano reads 64 tokens at most"):
        pair_jobs.SimSeg.build_model(pair_jobs.architecture_config("simseg_nano"), task)


def test_a_tokenizer_with_more_words_than_the_tower_is_named(tmp_path):
    task = pair_jobs.make_task(tmp_path)
    with pytest.raises(ValueError, match=f"--vocab-size 5: the tokenizer has {len(task.text_tokenizer)} entries"):
        pair_jobs.SimSeg.build_model(pair_jobs.architecture_config("simseg_nano", vocab_size=5), task)


@pytest.mark.parametrize("option, side", [("--patch-image-size", 36), ("--patch-image-size", 0), ("--eval-image-size", 36)])
def test_sides_of_no_whole_patches_are_named(tmp_path, option, side):
    task = pair_jobs.make_task(tmp_path)
    setattr(task.cfg, option[2:].replace("-", "_"), side)
    with pytest.raises(ValueError, match=f"{option} {side}: the model reads patches of 8 pixels"):
        task.build_model(pair_jobs.architecture_config("simseg_nano", _name="simseg_nano"))


def test_rows_left_out_are_counted(tmp_path):
    task, model = pair_jobs.make_task(tmp_path, 4), pair_jobs.make_model(dropout=0.0)
    batch = pair_jobs.make_batch(PAIRS) | {"bad_rows": ["row 3"]}
    criterion = pair_jobs.ImageTextContrastive(task, 0.0, False)
    _, _, log = task.train_step(batch, model, criterion, pair_jobs.SimpleNamespace(backward=lambda loss: None), 1)
    with metrics.aggregate() as kept:
        task.reduce_metrics([log], criterion)
    assert kept.get_smoothed_values()["bad_rows_total"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("sub_batch", [0, 4])
def test_two_processes_have_the_gradient_of_the_whole_batch(whole, tmp_path, sub_batch):
    """Through DDP, in one part or in parts of 4 and 2."""
    shared_server().call("tests.integration.pair_jobs:store_step", str(tmp_path), PAIRS, sub_batch, nproc=2).check()
    assert_same_step(torch.load(tmp_path / "step.pt"), whole)
