"""Prompt learning's model: logits against CLIP's own passes, tasks mixed in a batch, what is filled, gradients, the official layout."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("open_clip")

from ofaseg.checkpoints.freeseg import export_official_prompts, load_prompts  # noqa: E402
from ofaseg.checkpoints.safe import load_state  # noqa: E402
from ofaseg.models.freeseg import FreeSeg  # noqa: E402
from ofaseg.models.freeseg import architecture_config as mask_config  # noqa: E402
from ofaseg.models.freeseg_prompt import FreeSegPrompt, architecture_config  # noqa: E402
from ofaseg.models.freeseg_state import to_official  # noqa: E402
from ofaseg.models.state import CheckpointError  # noqa: E402

START, END = 49406, 49407
PROMPTS = [[[START, 320, 321, END]], [[START, 1237, END]], [[START, 999, 17, 18, END]], [[START, 5, END]]]
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((122.7709, 116.7460, 104.0937), (68.5005, 66.6322, 70.3232)))

pytestmark = pytest.mark.usefixtures("one_thread")


def build(seed=4, **options) -> FreeSegPrompt:
    torch.manual_seed(seed)
    model = FreeSegPrompt(architecture_config("freeseg_prompt_nano", **options), PROMPTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim and "token_embedding" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    model.prompt.take_signals(model.clip.token_embedding.weight)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    masks = torch.rand(3, 32, 32, generator=generator) > 0.4
    return dict(image=image, masks=masks, tasks=("semantic", "panoptic"), task_rows=torch.tensor([1, 0, 1]))


@torch.no_grad()
def test_logits_are_those_of_clip(model, batch):
    """Each region with the texts of its own task; surroundings are 0 after normalisation."""
    found = model(**batch)
    for row, (image, mask, task) in enumerate(zip(batch["image"], batch["masks"], ("panoptic", "semantic", "panoptic"))):
        vector = model.clip.encode_image((((image - MEAN) / STD) * mask)[None], normalize=True)[0]
        torch.testing.assert_close(found[row], 100 * model.class_embeddings(task) @ vector, atol=1e-2, rtol=1e-4)
    alone = model(batch["image"][1:2], batch["masks"][1:2], ("semantic",), torch.tensor([0]))
    torch.testing.assert_close(found[1:2], alone, atol=1e-3, rtol=1e-4)
    assert (found[0] - model(batch["image"], batch["masks"], ("semantic",), torch.zeros(3, dtype=torch.long))[0]).abs().max() > 0.1


@torch.no_grad()
def test_the_published_fill_and_the_published_height(batch):
    """Means of RGB in 0..1 where 0 is meant; crops of 34 x 32 are a grid of 4 x 4 here as those of 244 x 224 are one of 15 x 14."""
    published, plain = build(fill_with_mean=True), build()
    image, masks = batch["image"], batch["masks"]
    expected = torch.where(masks[:, None], (image - MEAN) / STD, torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1))
    torch.testing.assert_close(
        published.region_vectors(image, masks), published.clip.encode_image(expected, normalize=True), atol=1e-5, rtol=1e-4
    )
    assert (published.region_vectors(image, masks) - plain.region_vectors(image, masks)).abs().max() > 1e-3
    tall, tall_masks = F.pad(image, (0, 0, 0, 2)), F.pad(masks, (0, 0, 0, 2))
    torch.testing.assert_close(plain.region_vectors(tall, tall_masks), plain.region_vectors(image, masks))
    higher = torch.cat([image, image[:, :, :8]], 2)
    assert plain.region_vectors(higher, torch.cat([masks, masks[:, :8]], 1)).shape == (3, 40)


def test_only_prompts_are_trained(batch):
    """Prompts of class and task get a gradient; classes that play no part need not be encoded."""
    model = build()
    rows = torch.tensor([0, 2, 3])
    logits = model(**batch, class_rows=rows)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(**batch)[:, rows], atol=1e-3, rtol=1e-4)
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"prompt.class_prompt", "prompt.task_prompt"}
    assert all(p.grad.abs().max() > 0 for p in model.prompt.parameters())


@torch.no_grad()
def test_bf16(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch)
    assert found.dtype == torch.float32 and (found - model(**batch)).abs().max() < 3


def test_the_published_layout(tmp_path, model):
    """Entries of ViT-B/16: CLIP's 302 and the prompts' 6, no others; there and back; stage two reads both layouts."""
    with torch.device("meta"):
        published = to_official(FreeSegPrompt(architecture_config("freeseg_prompt_b16")).state_dict())
    learner = {key: tuple(value.shape) for key, value in published.items() if key.startswith("clip_adapter.prompt_learner.")}
    shapes = {"prefix_prompt": (16, 512), "task_prompt": (8, 512)} | dict.fromkeys(
        ("start_signal", "dot_signal", "end_signal", "pad_signal"), (1, 512)
    )
    assert learner == {f"clip_adapter.prompt_learner.{name}": shape for name, shape in shapes.items()}
    assert len(published) == 302 + 6 and sum(key.startswith("clip_adapter.clip_model.") for key in published) == 302
    export_official_prompts(model, tmp_path / "official.pth")
    other = build(seed=9)
    state = load_state(tmp_path / "official.pth")["model"]
    other.upgrade_state_dict_named(state, "")
    other.load_state_dict(state, strict=True)
    for (name, ours), theirs in zip(other.state_dict().items(), model.state_dict().values()):
        assert torch.equal(ours, theirs), name
    torch.save({"model": model.state_dict()}, tmp_path / "ours.pt")
    for file in ("official.pth", "ours.pt"):
        masks = FreeSeg(mask_config("freeseg_nano"), PROMPTS)
        load_prompts(masks, tmp_path / file)
        assert torch.equal(masks.prompt.task_prompt, model.prompt.task_prompt)


def test_files_that_do_not_fit():
    whole, model = FreeSeg(mask_config("freeseg_nano"), PROMPTS).state_dict(), build()
    with pytest.raises(CheckpointError, match="holds a whole FreeSeg"):
        model.upgrade_state_dict_named(whole, "")
    short = {key: value for key, value in model.state_dict().items() if key != "prompt.task_prompt"}
    with pytest.raises(CheckpointError, match="prompt.task_prompt: missing"):
        model.upgrade_state_dict_named(short, "")
