"""Export, read back, and build models and tasks from checkpoint files."""

import dataclasses
import json
import shutil

import pytest
import torch

from ofaseg.checkpoints import CheckpointError, export_safetensors, load_model, load_state
from ofaseg.models.ifseg import SegOFA, architecture_config
from ofaseg.vocabulary import ClassVocabulary, VocabularyError
from tests.checkpoints.layouts import ofa_state
from tests.toy import write_toy_shards

WORDS = "what is the segmentation map of image? object: unknown red ball grass sky water tree".split()
NAMES = ("red ball", "grass", "sky")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bpe").mkdir()
    (tmp_path / "bpe" / "dict.txt").write_text("".join(f"{word} 1\n" for word in WORDS))
    return tmp_path


def configuration(folder, **model_options):
    model = dataclasses.asdict(architecture_config("segofa_nano", **model_options)) | {"_name": "segofa_nano"}
    task = {
        "_name": "seq2seq_segmentation", "data": str(folder / "gone"), "bpe_dir": str(folder / "bpe"), "class_names": ", ".join(NAMES),
        "num_bins": 12, "code_dict_size": 0, "patch_image_size": 96, "max_source_positions": 512, "seed": 1,
    }  # fmt: skip
    return {"model": model, "task": task}


def trained_model(cfg, rows: int):
    torch.manual_seed(2)
    tokens = [[4 + WORDS.index(word) for word in name.split()] for name in NAMES]
    config = architecture_config("segofa_nano")
    return SegOFA(config, rows, tokens).eval()


ROWS = 4 + len(WORDS) + 1 + 12 + 1


def predict(model, task):
    image = torch.arange(96 * 96 * 3, dtype=torch.int64).view(96, 96, 3).mul(7).remainder(255).to(torch.uint8).numpy()
    return model.predict(**task.encode_image_for_predict(image)["net_input"]).class_logits


def test_given_names_do_not_depend_on_whether_the_training_folder_still_exists(folder):
    cfg = configuration(folder)
    torch.save({"model": trained_model(cfg, ROWS).state_dict(), "cfg": cfg}, folder / "checkpoint.pt")
    write_toy_shards(folder / "gone", "train", 1, names=NAMES)
    for _ in range(2):
        model, task = load_model(folder / "checkpoint.pt", class_names="water, tree")
        assert task.vocabulary.names == ("water", "tree") and model.num_classes == 2
        shutil.rmtree(folder / "gone", ignore_errors=True)


def test_training_checkpoint(folder):
    cfg = configuration(folder)
    model = trained_model(cfg, ROWS)
    torch.save({"model": model.state_dict(), "cfg": cfg}, folder / "checkpoint.pt")
    loaded, task = load_model(folder / "checkpoint.pt")
    assert task.vocabulary.names == NAMES and not loaded.training
    assert task.class_token_ids == [ids[ids != 1].tolist() for ids in model.class_token_ids]
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert predict(loaded, task).shape == (1, 3, 12, 12)


def test_averaged_weights_and_a_moved_start_file(folder):
    """A run with --store-ema is judged by its averaged weights; the file it once started from need not exist any more."""
    cfg = configuration(folder)
    cfg["task"]["pretrained"] = str(folder / "no longer there.pt")
    model = trained_model(cfg, ROWS)
    averaged = {key: value + 1 for key, value in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "cfg": cfg, "extra_state": {"ema": averaged}}, folder / "checkpoint.pt")
    loaded, _ = load_model(folder / "checkpoint.pt")
    assert torch.equal(loaded.encoder.layer_norm.weight, model.encoder.layer_norm.weight + 1)


def test_other_class_names(folder):
    cfg = configuration(folder)
    torch.save({"model": trained_model(cfg, ROWS).state_dict(), "cfg": cfg}, folder / "checkpoint.pt")
    loaded, task = load_model(folder / "checkpoint.pt", class_names="water, tree")
    assert loaded.num_classes == 2
    assert torch.equal(loaded.class_embeddings(), loaded.class_words())
    assert predict(loaded, task).shape == (1, 2, 12, 12)


def test_trained_class_vectors_go_by_name(folder, caplog):
    """In another order they move with their names; a new name has its words', and is told."""
    cfg = configuration(folder, train_class_embedding=True)
    model = trained_model(cfg, ROWS)
    with torch.no_grad():
        model.encoder.seg_embed_tokens.weight += torch.arange(1.0, 4.0)[:, None]
    state = {"vocabulary": ClassVocabulary(NAMES, source="test").to_json()}
    torch.save({"model": model.state_dict(), "cfg": cfg, "task_state": state}, folder / "checkpoint.pt")
    rows = model.class_embeddings()
    moved, _ = load_model(folder / "checkpoint.pt", class_names="sky, red ball, grass")
    assert torch.equal(moved.class_embeddings(), rows[[2, 0, 1]]) and not [r for r in caplog.records if r.levelname == "WARNING"]
    more, _ = load_model(folder / "checkpoint.pt", class_names="water, sky, red ball")
    assert torch.equal(more.class_embeddings()[1:], rows[[2, 0]])
    assert torch.equal(more.class_embeddings()[0], more.class_words()[0])
    assert "2 of 3 classes keep their trained vectors; the vectors of water are made from their words, not trained" in caplog.text


def test_subclasses_make_class_rows_anew(folder):
    """Class rows of the checkpoint, trained or not, give way to the mean over the names that are asked for."""
    cfg = configuration(folder)
    model = trained_model(cfg, ROWS)
    with torch.no_grad():
        model.encoder.seg_embed_tokens.weight += 1
    torch.save({"model": model.state_dict(), "cfg": cfg}, folder / "checkpoint.pt")
    words = dict(zip(WORDS, model.encoder.embed_tokens.weight[4:]))
    sets = {name: [WORDS[k], f"{WORDS[k + 1]} {WORDS[k]}"] for k, name in enumerate(NAMES)}
    (folder / "names.json").write_text(json.dumps(sets))
    loaded, task = load_model(folder / "checkpoint.pt", overrides={"subclasses": str(folder / "names.json"), "fusion": "mean"})
    expected = [(words[a] + (words[b.split()[0]] + words[b.split()[1]]) / 2) / 2 for a, b in sets.values()]
    torch.testing.assert_close(loaded.class_embeddings(), torch.stack(expected))
    assert torch.equal(task.source_tokens, load_model(folder / "checkpoint.pt")[1].source_tokens), "the text is that of the classes"
    assert predict(loaded, task).shape == (1, 3, 12, 12)


def test_a_run_trained_with_subclasses_keeps_its_rows(folder):
    """The file may have moved beside the checkpoint meanwhile."""
    sets = {name: [WORDS[k]] for k, name in enumerate(NAMES)}
    cfg = configuration(folder)
    cfg["task"] |= {"subclasses": str(folder / "gone" / "names.json"), "fusion": "mean"}
    model = trained_model(cfg, ROWS)
    state = {"vocabulary": ClassVocabulary(NAMES, source="test").to_json()}
    with torch.no_grad():
        model.encoder.seg_embed_tokens.weight += 1
    torch.save({"model": model.state_dict(), "cfg": cfg, "task_state": state}, folder / "checkpoint.pt")
    with pytest.raises(ValueError, match="no such label set"):
        load_model(folder / "checkpoint.pt")
    (folder / "names.json").write_text(json.dumps(sets))
    loaded, _ = load_model(folder / "checkpoint.pt")
    assert torch.equal(loaded.class_embeddings(), model.class_embeddings())
    torch.testing.assert_close(loaded.class_words()[1], model.encoder.embed_tokens.weight[5])
    other, task = load_model(folder / "checkpoint.pt", class_names="water, tree")
    assert task.class_words is None and other.num_classes == 2, "its subclasses are of its own classes"


def renamed_checkpoint(folder, names=NAMES):
    """A checkpoint trained on shards of three other words, with --class-names and --rename-classes; returns the shards."""
    shards = folder / "shards"
    vocabulary = write_toy_shards(shards, "val", 2, names=("ball", "lawn", "air"))
    cfg = configuration(folder)
    cfg["task"] |= {"data": str(shards), "rename_classes": True}
    model = trained_model(cfg, ROWS)
    with torch.no_grad():
        model.class_embeddings().add_(1)
    state = {"vocabulary": vocabulary.renamed(names).to_json()}
    torch.save({"model": model.state_dict(), "cfg": cfg, "task_state": state}, folder / "checkpoint.pt")
    return shards, model


def test_recorded_names_win_over_the_shards_trained_on(folder):
    shards, model = renamed_checkpoint(folder)
    for overrides in ({}, {"data": str(shards)}):
        loaded, task = load_model(folder / "checkpoint.pt", overrides=overrides)
        assert task.vocabulary.names == NAMES and task.vocabulary.palette
        assert torch.equal(loaded.class_embeddings(), model.class_embeddings())
    assert task.photo_dataset("val", training=False)[1]["native_label_map"].max() <= 2


def test_other_shards_bring_their_own_classes(folder):
    renamed_checkpoint(folder)
    write_toy_shards(folder / "other", "val", 1, names=("tree", "sky", "water"))
    loaded, task = load_model(folder / "checkpoint.pt", overrides={"data": str(folder / "other")})
    assert task.vocabulary.names == ("tree", "sky", "water")
    assert torch.equal(loaded.class_embeddings(), loaded.class_words())


def test_a_run_that_renamed_does_not_allow_renaming_later(folder):
    shards, _ = renamed_checkpoint(folder)
    with pytest.raises(VocabularyError, match="disagree, first at class 0"):
        load_model(folder / "checkpoint.pt", class_names="grass, sky, tree", overrides={"data": str(shards)})
    overrides = {"data": str(shards), "rename_classes": True}
    assert load_model(folder / "checkpoint.pt", class_names="grass, sky, tree", overrides=overrides)[1].vocabulary.names[0] == "grass"


def test_files_without_vocabulary_keep_their_label_offset(folder):
    """The recorded offset is that of the shards trained on; IFSeg's TSV files store class id + 1."""
    renamed_checkpoint(folder)
    (folder / "official").mkdir()
    _, task = load_model(folder / "checkpoint.pt", overrides={"data": str(folder / "official")})
    assert (task.vocabulary.names, task.vocabulary.label_offset, task.vocabulary.ignore_label) == (NAMES, 1, 0)


def test_export_and_read_back(folder):
    cfg = configuration(folder)
    model = trained_model(cfg, ROWS)
    vocabulary = ClassVocabulary(names=NAMES, source="test")
    path = folder / "model.safetensors"
    about = export_safetensors(model, cfg, path, vocabulary, notes={"seed": 2})
    assert about["seed"] == 2 and str(folder) not in path.with_suffix(".json").read_text()
    stored = load_state(path)["model"]
    assert "decoder.embed_tokens.weight" not in stored and "encoder.embed_tokens.weight" in stored
    loaded, task = load_model(path)
    assert task.vocabulary.names == NAMES
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_half_precision_export(folder):
    cfg = configuration(folder)
    path = folder / "model.safetensors"
    export_safetensors(trained_model(cfg, ROWS), cfg, path, ClassVocabulary(names=NAMES), dtype=torch.float16)
    loaded, task = load_model(path)
    assert next(loaded.parameters()).dtype == torch.float32
    assert predict(loaded, task).isfinite().all()


def test_export_needs_the_suffix(folder):
    with pytest.raises(CheckpointError, match="safetensors"):
        export_safetensors(torch.nn.Linear(1, 1), {"model": {}, "task": {}}, folder / "model.bin")


def test_overrides(folder):
    cfg = configuration(folder)
    torch.save({"model": trained_model(cfg, ROWS).state_dict(), "cfg": cfg}, folder / "checkpoint.pt")
    loaded, task = load_model(folder / "checkpoint.pt", overrides={"decoder_input_type": "query", "resnet_iters": 3})
    assert loaded.decoder.input_type == "query" and task.cfg.resnet_iters == 3
    with pytest.raises(CheckpointError, match="unknown option colour"):
        load_model(folder / "checkpoint.pt", overrides={"colour": 1})
    with pytest.raises(CheckpointError, match=r"^option resnet_iters: .*'many'.*Integer; correct --override resnet_iters=many$"):
        load_model(folder / "checkpoint.pt", overrides={"resnet_iters": "many"})
    with pytest.raises(CheckpointError, match="option decoder_input_type: .*'pixels'.*encoder_output"):
        load_model(folder / "checkpoint.pt", overrides={"decoder_input_type": "pixels"})


def test_official_configuration(folder):
    """A published checkpoint: no registered model name, string booleans, the class list as one text."""
    cfg = configuration(folder)
    model = trained_model(cfg, ROWS)
    official = {
        "model": {
            "arch": "segofa_x",
            "patch_image_size": 96,
            "orig_patch_image_size": 96,
            "tie_seg_projection": "true",
            "full_context_alignment": "true",
        },
        "task": {"category_list": "red ball, grass, sky", "prompt_prefix": "what is the image? object:"},
    }
    torch.save({"model": model.state_dict(), "cfg": official}, folder / "figure.pt")
    loaded, task = load_model(folder / "figure.pt", overrides={"num_bins": 12, "code_dict_size": 0})
    assert task.vocabulary.names == NAMES and task.cfg.prompt_prefix == "what is the image? object:"
    assert loaded.decoder.full_context


def test_no_class_names(folder):
    cfg = configuration(folder)
    state = ofa_state(trained_model(cfg, ROWS))
    torch.save({"model": state}, folder / "ofa.pt")
    options = {"num_bins": 12, "code_dict_size": 0}
    with pytest.raises(CheckpointError, match="give --class-names"):
        load_model(folder / "ofa.pt", overrides=options)
    loaded, _ = load_model(folder / "ofa.pt", class_names="sky,grass", overrides=options)
    assert loaded.num_classes == 2


def test_json_describes_the_model(folder):
    cfg = configuration(folder)
    export_safetensors(trained_model(cfg, ROWS), cfg, folder / "m.safetensors", ClassVocabulary(names=NAMES))
    about = json.loads((folder / "m.json").read_text())
    assert about["format"] == "ofaseg-model" and about["vocabulary"]["names"] == list(NAMES)
    assert about["model"]["encoder_embed_dim"] == 128 and "data" not in about["task"]


def test_published_configuration_is_known_by_content():
    """The published code's `_name` is an architecture that exists here too; its booleans are strings."""
    from ofaseg.checkpoints.ifseg import is_official_configuration

    official = {"model": {"_name": "segofa_base", "tie_seg_projection": "true", "full_context_alignment": "false"}}
    assert is_official_configuration(official)
    assert not is_official_configuration({"model": {"_name": "segofa_base", "full_context_alignment": False}, "task": {}})


def test_weights_of_another_description_are_refused(tmp_path):
    """A partial copy: the JSON file of one export beside the weights of another."""
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    path.with_suffix(".json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="does not belong to model.json"):
        load_state(path)
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(CheckpointError, match="needs a JSON object"):
        load_state(path)


def test_word_pieces_are_those_recorded_or_none(tmp_path):
    """Another file of the same name cuts texts into other pieces; that of the package stands in for itself alone."""
    from ofaseg.checkpoints.restore import ASSETS, _word_pieces

    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.parent.mkdir()
    with pytest.raises(CheckpointError, match=r"/gone/vocab.txt are not there any more; copy the file .* --override bert_vocab=FILE"):
        _word_pieces("/gone/vocab.txt", checkpoint)
    assert _word_pieces("/elsewhere/ofaseg/assets/shapes/vocab.txt", checkpoint) == str(ASSETS / "shapes" / "vocab.txt")
    assert _word_pieces("/elsewhere/ofaseg/assets/shapes", checkpoint) == str(ASSETS / "shapes")
    (tmp_path / "words").mkdir()
    with pytest.raises(CheckpointError, match="words are not there any more"):
        _word_pieces(str(tmp_path / "words"), checkpoint)
    (tmp_path / "words" / "vocab.txt").write_text("b")
    assert _word_pieces(str(tmp_path / "words"), checkpoint) == str(tmp_path / "words")  # --bert-vocab takes a folder too
    assert _word_pieces("", checkpoint) == _word_pieces("???", checkpoint) == str(checkpoint.parent)
    (checkpoint.parent / "vocab.txt").write_text("a")
    assert _word_pieces("/gone/vocab.txt", checkpoint) == str(checkpoint.parent / "vocab.txt")
