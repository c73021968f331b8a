"""The task around FreeSeg: masks of every kind and their classes, the draw of a task, held-out classes, class maps, files."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("open_clip")

from criterions.mask_matching import MaskMatching  # noqa: E402
from ofaseg.checkpoints import CheckpointError  # noqa: E402
from ofaseg.data import codec, transforms  # noqa: E402
from ofaseg.data.shards import ShardError, ShardWriter  # noqa: E402
from ofaseg.evaluation import semantic  # noqa: E402
from ofaseg.evaluation.mask_proposals import classify_masks, semantic_maps, upsample_masks  # noqa: E402
from ofaseg.evaluation.postprocess import PostProcess  # noqa: E402
from ofaseg.models.freeseg import architecture_config  # noqa: E402
from ofaseg.utils.run_lengths import text_of_mask  # noqa: E402
from ofaseg.vocabulary import VocabularyError  # noqa: E402
from tests.toy import write_toy_shards  # noqa: E402
from tests.toy_freeseg import make_task, toy_segments, vocabulary_of, write_segment_shards  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def build(task, **options):
    torch.manual_seed(2)
    config = vars(architecture_config("freeseg_nano", **options)) | {"_name": "freeseg"}
    return task.build_model(OmegaConf.create(config)).eval()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for split in ("train", "val"):
        write_segment_shards(root, split, 4, seed=len(split))
    return root


def training_batch(task, rows=(0, 1, 2, 3)):
    task.load_dataset("train")
    data = task.datasets["train"]
    return data.collater([data[k] for k in rows])


def truth(split, count, size=(72, 96)):
    """What `write_segment_shards` drew: (label map, segment map, list) of each row."""
    rng, rows = np.random.default_rng(len(split)), []
    for _ in range(count):
        rows.append(toy_segments(rng, *size))
        rng.integers(-20, 20, (*size, 3))  # the photo's noise
    return rows


def as_set(masks, classes):
    return {(mask.numpy().tobytes(), int(class_id)) for mask, class_id in zip(masks, classes)}


def expected_masks(task_name, label_map, ids, entries):
    if task_name == "semantic":
        return [(label_map == k, k) for k in np.unique(label_map) if k >= 0]
    kept = [entry for entry in entries if not entry["is_crowd"] and (task_name == "panoptic" or entry["class_id"] < 2)]
    return [(ids == entry["id"], entry["class_id"]) for entry in kept]


# ---- masks ----


@pytest.mark.parametrize("name", ["semantic", "instance", "panoptic"])
def test_masks_are_those_of_the_shards(shards, name):
    """At native size every mask has its pixels and its class; crowds and, for instances, stuff are left out."""
    task = make_task(shards)
    task.training_transform = lambda sample, rng: sample
    batch = task.with_masks(training_batch(task), name)
    targets, start = batch["masks"], 0
    assert batch["net_input"]["task"] == name and targets.masks.dtype == torch.bool and len(targets.counts) == 4
    for (label_map, ids, entries), count in zip(truth("train", 4), targets.counts):
        expected = expected_masks(name, label_map, ids, entries)
        found = as_set(targets.masks[start : start + count], targets.classes[start : start + count])
        assert found == {(mask.tobytes(), int(class_id)) for mask, class_id in expected} and count == len(expected)
        start += count
    assert start == len(targets.masks) > 4


def test_masks_follow_the_photo_through_augmentation(shards, monkeypatch):
    """A mask of any kind covers pixels of its class's colour after scale, crop and flip; what a crop has lost is no mask."""
    monkeypatch.setattr(transforms, "photometric_distortion", lambda sample, rng: sample)
    task = make_task(shards)
    task.load_dataset("train")
    data, right = task.datasets["train"], {"semantic": [], "instance": [], "panoptic": []}
    for epoch in range(1, 4):
        data.set_epoch(epoch)
        batch = data.collater([data[k] for k in range(4)])
        assert batch["net_input"]["image"].shape == (4, 3, 64, 64)
        brightest = batch["net_input"]["image"].int().argmax(1)  # colours are those of the class ids
        for name, hits in right.items():
            targets = task.with_masks(batch, name)["masks"]
            photos = torch.repeat_interleave(torch.arange(4), torch.tensor(targets.counts))
            assert targets.masks.flatten(1).any(1).all()
            hits += [brightest[photo][mask] == k for mask, k, photo in zip(targets.masks, targets.classes, photos)]
    for hits in right.values():
        assert len(hits) > 12 and torch.cat(hits).float().mean() > 0.9  # photos are resized bilinearly, masks are not


def test_masks_reach_the_size_of_the_padded_photos(shards):
    task = make_task(shards, patch_image_size=50)
    task.size_multiple = 32
    batch = task.with_masks(training_batch(task), "panoptic")
    assert batch["net_input"]["image"].shape[2:] == (50, 50) and batch["masks"].masks.shape[1:] == (64, 64)
    assert not batch["masks"].masks[:, 50:].any() and not batch["masks"].masks[:, :, 50:].any()


def test_held_out_classes_play_no_part_in_training(tmp_path):
    vocabulary = vocabulary_of(novel=(True, False, False))
    write_segment_shards(tmp_path, "train", 4, seed=5, vocabulary=vocabulary)
    task = make_task(tmp_path, vocabulary)
    model = build(task)
    whole = training_batch(task)
    assert (whole["target"] == 0).any()
    batch = task.with_masks(whole, "semantic")
    start = 0
    for photo, count in enumerate(batch["masks"].counts):
        for mask, row in zip(batch["masks"].masks[start : start + count], batch["masks"].classes[start : start + count]):
            assert torch.equal(mask, whole["target"][photo] == row + 1)
        start += count
    with torch.no_grad():
        output = model(**batch["net_input"])
        assert output.class_logits[-1].shape[-1] == 3, "two classes and no object"
        model.set_classes([[task.class_prompts[1][0]], [task.class_prompts[2][0]]])
        alone = model(whole["net_input"]["image"])
    torch.testing.assert_close(output.class_logits[-1], alone.class_logits[-1], atol=1e-3, rtol=1e-4)


def test_what_the_shards_do_not_carry_is_one_error(tmp_path):
    write_toy_shards(tmp_path, "train", 3)
    with pytest.raises(ShardError, match="no column segment_map and no column segments, .* --tasks semantic"):
        make_task(tmp_path, tasks="semantic,panoptic").load_dataset("train")
    task = make_task(tmp_path, tasks="semantic")
    batch = task.with_masks(training_batch(task, (0, 1)), "semantic")
    assert "segment_maps" not in batch and len(batch["masks"].masks) >= 2
    write_segment_shards(tmp_path / "b", "train", 2, vocabulary=vocabulary_of(thing=()))
    with pytest.raises(VocabularyError, match="marks no class as a thing"):
        make_task(tmp_path / "b", vocabulary_of(thing=())).load_dataset("train")
    with pytest.raises(ValueError, match="--tasks 'semantic,pan': give one or more of semantic,instance,panoptic"):
        make_task(tasks="semantic,pan")


def rows_from(size, first, end):
    """(H, W) bool, True in some rows, margins left and right."""
    mask = np.zeros(size, dtype=bool)
    mask[first:end, 3:30] = True
    return mask


def test_objects_alone_do_for_the_task_instance(tmp_path):
    """The smaller of two objects lies on top, one that is hidden is no mask, nor is a crowd."""
    size, entries = (24, 40), []
    for number, (place, class_id, crowd) in enumerate([((4, 12), 0, False), ((0, 20), 1, False), ((5, 7), 0, True), ((4, 12), 0, False)]):
        entries.append({"id": 70 + number, "class_id": class_id, "is_crowd": crowd, "area": 1.0, "box": [0.0, 0.0, 1.0, 1.0]})
        entries[-1]["mask"] = text_of_mask(rows_from(size, *place))
    vocabulary = vocabulary_of()
    row = {"id": "a", "image": codec.encode_image(np.zeros((*size, 3), dtype=np.uint8), "png"), "instances": entries}
    row["label_map"] = codec.encode_label_map(np.full(size, -1), vocabulary)
    with ShardWriter(str(tmp_path), "train", vocabulary, list(row)) as writer:
        writer.write(row)
    task = make_task(tmp_path, tasks="instance")
    task.training_transform = lambda sample, rng: sample
    targets = task.with_masks(training_batch(task, (0,)), "instance")["masks"]
    large, small = rows_from(size, 0, 4) | rows_from(size, 12, 20), rows_from(size, 4, 5) | rows_from(size, 7, 12)
    found = as_set(targets.masks[:, : size[0], : size[1]].contiguous(), targets.classes)
    assert found == {(large.tobytes(), 1), (small.tobytes(), 0)} and len(targets.masks) == 2
    with pytest.raises(ShardError, match="no column segment_map"):
        make_task(tmp_path, tasks="instance,panoptic").load_dataset("train")


# ---- draw ----


def test_one_task_per_update():
    """The draw needs the seed and the update alone, so ranks and resumed runs agree; all tasks come up about equally."""
    task, again, other, two = make_task(), make_task(), make_task(seed=2), make_task(tasks="panoptic, semantic")
    drawn = [task.drawn_task(update) for update in range(90)]
    assert [again.drawn_task(update) for update in reversed(range(90))] == drawn[::-1]
    assert all(20 < drawn.count(name) < 40 for name in ("semantic", "instance", "panoptic"))
    assert [other.drawn_task(update) for update in range(90)] != drawn
    assert {two.drawn_task(update) for update in range(20)} == {"semantic", "panoptic"}


def test_a_repeated_batch_leaves_no_gradient_and_does_not_count(shards):
    """A process without a batch of its own takes the first one of training, although validation was opened last."""
    task = make_task(shards)
    model, counted = build(task), []
    task.load_dataset("train")
    task.load_dataset("val")
    val = task.datasets["val"].collater([task.datasets["val"][0]])
    criterion, optimizer = MaskMatching(task), SimpleNamespace(backward=lambda loss: loss.backward())
    forward = criterion.forward
    criterion.forward = lambda model, sample: counted.append(sample["counted"]) or forward(model, sample)
    task.train_step(val, model, criterion, optimizer, 3, ignore_grad=True)
    assert counted == [False] and not any(p.grad.any() for p in model.parameters() if p.grad is not None)


# ---- prediction ----


@torch.no_grad()
def test_class_maps(shards):
    """Those of summed class scores times masks, at native size, with CLIP's opinion of regions and without."""
    vocabulary = vocabulary_of(novel=(False, True, False))
    image = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    for without in (True, False):
        task = make_task(shards, vocabulary, without_regions=without, ensemble_weight=0.7)
        model = build(task)
        found = task.predict_batch(model, {"image": image}, [(50, 70), (100, 35)])
        output = model.predict(image, regions=not without)["semantic"]
        for b, size in enumerate([(50, 70), (100, 35)]):
            masks = upsample_masks(output.mask_logits[b], (64, 96), (50, 70))
            regions = () if without else (output.region_logits[b], output.region_valid[b], torch.tensor([True, False, True]), 0.7)
            maps = semantic_maps(classify_masks(masks, output.class_logits[-1][b], *regions))
            maps = torch.nn.functional.interpolate(maps[None], size, mode="bilinear")[0]
            assert found[b].label_map.shape == size and (found[b].label_map == maps.argmax(0)).float().mean() > 0.999
    with pytest.raises(ValueError, match="resnet_iters spreads"):
        task.predict_batch(model, {"image": image}, [(50, 70)] * 2, PostProcess(resnet_iters=1))


@torch.no_grad()
def test_validation(shards):
    """Its counts are those of prediction, its loss that of the semantic masks; a batch without rows has the same entries."""
    task = make_task(shards, without_regions=True)
    model, criterion = build(task), MaskMatching(task)
    task.load_dataset("val")
    data = task.datasets["val"]
    batch = data.collater([data[k] for k in range(4)])
    loss, photos, log = task.valid_step(batch, model, criterion)
    found = task.predict_batch(model, batch["net_input"], batch["native_sizes"])
    expected = sum(semantic.bin_counts(one.label_map, label, 3) for one, label in zip(found, batch["native_label_maps"]))
    assert torch.equal(log["_confusion"], expected) and photos == 4 and loss.isfinite() and loss > 0
    native = [torch.from_numpy(label_map) for label_map, *_ in truth("val", 4)]
    assert all(torch.equal(ours.long(), theirs.long()) for ours, theirs in zip(batch["native_label_maps"], native))
    rows, columns = torch.arange(64) * 72 // 64, torch.arange(85) * 96 // 85
    assert all(torch.equal(ours.long(), theirs[rows][:, columns].long()) for ours, theirs in zip(batch["input_label_maps"], native))
    empty = {"nsentences": 0, "bad_rows": ["gone"], "net_input": {}, "id": torch.zeros(0)}
    nothing = task.valid_step(empty, model, criterion)[2]
    assert list(nothing) == list(log), "processes add logs up by place"
    assert not nothing["_confusion"].any()
    assert all(torch.is_tensor(nothing[key]) == torch.is_tensor(log[key]) for key in log)


@torch.no_grad()
def test_validation_alone_without_regions(shards, monkeypatch):
    """What makes validation quick must not follow the checkpoint into evaluation."""
    task = make_task(shards, valid_without_regions=True)
    model, asked = build(task), []
    monkeypatch.setattr(model, "with_regions", lambda output, *_: asked.append(1) or output)
    task.load_dataset("val")
    batch = task.datasets["val"].collater([task.datasets["val"][0]])
    task.valid_step(batch, model, MaskMatching(task))
    assert not asked
    task.proposals(model, batch["net_input"])
    assert asked


def test_short_sides(shards, monkeypatch):
    """The published scales by default, or the sizes that are named; photos are shrunk with antialiasing, label maps are not."""
    assert make_task(shards, patch_image_size=640).short_sides == tuple(range(320, 961, 64))
    task = make_task(shards, short_sides="32, 48")
    assert task.short_sides == (32, 48)
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[::2] = 255
    sample = {"image": stripes, "label_map": (stripes[..., 0] > 0).astype(np.int16)}
    drawn, resize = set(), transforms.resize_short_side
    monkeypatch.setattr(transforms, "resize_short_side", lambda *args, **options: drawn.add(args[1]) or resize(*args, **options))
    assert all(task.training_transform(sample, np.random.default_rng(k))["image"].shape == (64, 64, 3) for k in range(9))
    assert drawn == {32, 48}
    small = task.evaluation_transform({"image": stripes})["image"]
    assert small.shape == (64, 64, 3) and abs(small.astype(int) - 127).max() < 45, "a mean over the stripes"
    assert set(np.unique(transforms.resize_short_side(sample, 50, antialias=True)["label_map"])) == {0, 1}
    for wrong in ("32,0", "32,x", "-5"):
        with pytest.raises(ValueError, match="give pixels, separated by commas"):
            make_task(shards, short_sides=wrong)


def test_files_of_the_parts(tmp_path, shards):
    from tests.checkpoints.clip_files import nano_state, openai_state

    with pytest.raises(CheckpointError, match="give --clip-checkpoint"):
        build(make_task(shards, random_towers=False))
    state = nano_state()
    torch.save(openai_state(state), tmp_path / "clip.pt")
    model = build(make_task(shards, random_towers=False, clip_checkpoint=str(tmp_path / "clip.pt")))
    torch.testing.assert_close(model.clip.ln_final.weight, state["ln_final.weight"])
    model.prompt.class_prompt.data.fill_(0.25)
    model.image_encoder.bn1.running_mean.fill_(3.0)
    torch.save({"model": model.state_dict()}, tmp_path / "whole.pt")
    torch.save({"model": model.image_encoder.state_dict()}, tmp_path / "image.pt")
    files = dict(prompt_checkpoint=str(tmp_path / "whole.pt"), image_checkpoint=str(tmp_path / "image.pt"))
    other = build(make_task(shards, **files))
    assert (other.prompt.class_prompt == 0.25).all() and (other.image_encoder.bn1.running_mean == 3).all()


@torch.no_grad()
def test_a_file_in_the_published_layout_is_segmented_with(tmp_path, shards):
    """Its sizes are read from it; heads of the nano size, narrower than the published ones, are given."""
    from ofaseg.checkpoints import load_model
    from ofaseg.checkpoints.freeseg import export_official

    task = make_task(shards, without_regions=True)
    model = build(task)
    export_official(model, tmp_path / "model.pth")
    sizes = {key: getattr(model.config, key) for key in ("image_encoder", "image_heads", "text_heads", "interaction_heads")}
    overrides = sizes | {"patch_image_size": 64, "without_regions": True}
    other, restored = load_model(tmp_path / "model.pth", class_names="red,green,blue", overrides=overrides)
    assert type(restored) is type(task) and restored.vocabulary.names == task.vocabulary.names
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    batch = task.encode_image_for_predict(photo)
    ours, theirs = (t.predict_batch(m, batch["net_input"], [(50, 70)])[0].label_map for t, m in ((task, model), (restored, other)))
    assert torch.equal(ours, theirs)
    changed, _ = load_model(tmp_path / "model.pth", class_names="cat,dog", overrides=overrides)
    assert changed.class_embeddings().shape == (2, 40)
