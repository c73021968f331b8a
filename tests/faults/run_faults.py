"""Faults of checkpoints, run folders, logs and configurations."""

import json
import os
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from tests.faults.corpus import ANY_ROW, VOCABULARY, fault, write_clean_shards

CLASS_ROWS = "encoder.seg_embed_tokens.weight"


def checkpoint(**weights) -> dict:
    """What a checkpoint of fairseq-train holds, as far as it is looked at."""
    model = {"encoder.embed_tokens.weight": torch.zeros(10, 128), CLASS_ROWS: torch.zeros(3, 128)} | weights
    return {
        "model": model,
        "cfg": {"model": {"_name": "segofa_nano"}, "task": {"_name": "seq2seq_segmentation"}},
        "task_state": {"vocabulary": VOCABULARY.to_json()},
    }


def save(root: Path, content) -> Path:
    torch.save(content, root / "model.pt")
    return root / "model.pt"


class RunsACommand:
    """Pickles to a call, as a malicious file does."""

    def __reduce__(self):
        return os.system, ("true",)


@fault("path", "bad_checkpoint", "damaged", file="model.pt")
def checkpoint_cut_off(root):
    path = save(root, checkpoint())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


@fault("path", "bad_checkpoint", "was not loaded", "source you trust", file="model.pt")
def checkpoint_with_code(root):
    return save(root, checkpoint() | {"extra": RunsACommand()})


@fault("path", "bad_checkpoint", "damaged", file="model.pt")
def checkpoint_empty(root):
    (root / "model.pt").write_bytes(b"")
    return root / "model.pt"


@fault("path", "bad_checkpoint", file="model.pt")
def checkpoint_is_web_page(root):
    (root / "model.pt").write_text("<!doctype html><title>Quota exceeded</title>")
    return root / "model.pt"


@fault("path", "bad_checkpoint", "no weights by name", file="model.pt")
def checkpoint_of_an_optimizer(root):
    return save(root, {"last_optimizer_state": {"step": 3}, "epoch": 2})


@fault("path", "bad_checkpoint", file="model.pt")
def checkpoint_of_another_model(root):
    return save(root, {"layer1.0.conv1.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.zeros(10, 4)})


@fault("path", "nan_weights", file="model.pt", column="encoder.layernorm.weight")
def checkpoint_not_finite(root):
    return save(root, checkpoint(**{"encoder.layernorm.weight": torch.tensor([1.0, float("nan")])}))


@fault("path", "class_rows", file="model.pt", column=CLASS_ROWS)
def checkpoint_of_other_class_count(root):
    return save(root, checkpoint(**{CLASS_ROWS: torch.zeros(5, 128)}))


@fault("path", "bad_checkpoint", "not a readable safetensors file", file="model.safetensors")
def safetensors_cut_off(root):
    save_file(checkpoint()["model"], root / "model.safetensors")
    data = (root / "model.safetensors").read_bytes()
    (root / "model.safetensors").write_bytes(data[:-100])
    return root / "model.safetensors"


@fault("path", "bad_checkpoint", "sha256 differs", "copy both again", file="model.safetensors")
def safetensors_with_description_of_another(root):
    save_file(checkpoint()["model"], root / "model.safetensors")
    (root / "model.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    return root / "model.safetensors"


# ---- configurations ----


def write_yaml(root: Path, **changes) -> Path:
    """A configuration of the hydra entry point on clean shards, with groups replaced."""
    write_clean_shards(root / "data")
    groups = {
        "task": {"_name": "seq2seq_segmentation", "data": str(root / "data"), "class_names": "red, green, blue"},
        "model": {"_name": "segofa_nano"},
        "criterion": {"_name": "seg_token_cross_entropy"},
        "optimization": {"max_epoch": 4, "lr": [1e-3]},
    }
    for group, values in changes.items():
        groups[group] = groups.get(group, {}) | values
    (root / "run.yaml").write_text(yaml.safe_dump(groups))
    return root / "run.yaml"


def write_script(root: Path, *changes: tuple[str, str]) -> Path:
    write_clean_shards(root / "data")
    text = (
        "#!/usr/bin/env bash\n"
        f"fairseq-train {root / 'data'} --user-dir ofaseg \\\n"
        "  --task seq2seq_segmentation --arch segofa_nano --criterion seg_token_cross_entropy \\\n"
        '  --optimizer torch_adamw --lr 1e-3 --lr-scheduler cosine_warmup_ratio --save-dir "$OUT" --max-epoch 4\n'
    )
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (root / "run.sh").write_text(text)
    return root / "run.sh"


@fault("path", "")
def script_clean(root):
    return write_script(root)


@fault("path", "")
def yaml_clean(root):
    return write_yaml(root)


@fault("path", "unknown_name", file="run.sh", row=2, column="model")
def script_of_unknown_architecture(root):
    return write_script(root, ("segofa_nano", "segofa_nanno"))


@fault("path", "unknown_name", file="run.sh", row=3, column="max_epochs")
def script_with_misspelt_option(root):
    return write_script(root, ("--max-epoch ", "--max-epochs "))


@fault("path", "missing_input", file="run.sh", row=1, column="data")
def script_with_missing_data(root):
    return write_script(root, (str(root / "data"), "/nowhere/shards"))


@fault("path", "bad_config", file="run.sh")
def script_with_open_quotation(root):
    return write_script(root, ('"$OUT"', '"$OUT'))


@fault("path", "unknown_name", file="run.yaml", row=ANY_ROW, column="task")
def yaml_of_unknown_task(root):
    return write_yaml(root, task={"_name": "segmentation"})


@fault("path", "unknown_name", file="run.yaml", row=ANY_ROW, column="criterion")
def yaml_of_unknown_criterion(root):
    return write_yaml(root, criterion={"_name": "seg_criterion"})


@fault("path", "unknown_name", file="run.yaml", row=ANY_ROW, column="strict_rows")
def yaml_with_old_option(root):
    return write_yaml(root, task={"strict_rows": True})


@fault("path", "missing_input", file="run.yaml", row=ANY_ROW, column="pretrained")
def yaml_with_missing_weights(root):
    return write_yaml(root, task={"pretrained": "weights/ofa_base.pt"})


@fault("path", "classes_differ", file="run.yaml", row=ANY_ROW, column="class_names")
def yaml_with_other_class_count(root):
    return write_yaml(root, task={"class_names": "red, green"})


@fault("path", "classes_differ", file="run.yaml", row=ANY_ROW, column="class_names")
def yaml_with_classes_in_other_order(root):
    return write_yaml(root, task={"class_names": "green, red, blue"})


@fault("path", "bad_config", file="run.yaml", row=1)
def yaml_indented_by_tabs(root):
    (root / "run.yaml").write_text("task:\n\t_name: seq2seq_segmentation\n")
    return root / "run.yaml"


# ---- run folders ----


def write_log(root: Path, *records: dict) -> Path:
    """A run folder with a log of `--log-format json`."""
    (root / "run").mkdir()
    lines = ["2026-01-02 03:04:05 | INFO | fairseq_cli.train | started", *(f"2026 | INFO | train | {json.dumps(r)}" for r in records)]
    (root / "run" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return root / "run"


@fault("path", "")
def log_clean(root):
    return write_log(root, {"epoch": 1, "train_loss": "1.2"}, {"epoch": 1, "val_loss": "1.3", "val_mIoU": "0.2"})


@fault("path", "nan_loss", file="train.jsonl", row=2, column="train_loss")
def log_with_nan(root):
    return write_log(root, {"epoch": 1, "train_loss": "1.2"}, {"epoch": 2, "train_loss": "nan"}, {"epoch": 3, "train_loss": "nan"})


@fault("path", "zero_score", file="train.jsonl", column="val_mIoU")
def log_with_zero_score(root):
    return write_log(root, {"epoch": 1, "val_mIoU": "0.0"}, {"epoch": 2, "val_mIoU": "0.0"})


@fault("path", "skipped_rows", file="train.jsonl", column="train_bad_rows")
def log_with_skipped_rows(root):
    return write_log(root, {"epoch": 1, "train_loss": "1.2", "train_bad_rows": "17"})


@fault("path", "bad_checkpoint", file="checkpoint_last.pt")
def run_with_damaged_checkpoint(root):
    write_log(root, {"epoch": 1, "train_loss": "1.2"})
    (root / "run" / "checkpoint_last.pt").write_bytes(b"\x80\x02}q\x00.")
    return root / "run"
