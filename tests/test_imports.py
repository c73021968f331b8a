"""Who may import whom (style: layers that meet only in tasks), read from the source without importing it."""

import ast
from pathlib import Path

import pytest

from tests.integration.import_facts import ROOT, fresh_import

PACKAGES = ("ofaseg", "user_tasks", "criterions", "data_prep", "tools")

LEAVES = {
    f"ofaseg.{name}"
    for name in ("structures", "vocabulary", "prompts", "seg_tokens", "losses", "atomic", "tokenizers", "utils")
}
EVERYTHING = {"*"}
# part -> the parts it may import, beside itself; "lazily" only inside functions
ALLOWED = {
    "ofaseg.models": LEAVES,
    "ofaseg.data": LEAVES,
    "ofaseg.evaluation": LEAVES,
    "ofaseg.checkpoints": LEAVES | {"ofaseg.models"},
    "ofaseg.compat": set(),
    "ofaseg.optim": set(),
    "ofaseg.commands": EVERYTHING,
    "ofaseg.cli": EVERYTHING,
    "ofaseg.hydra_train": set(),
    "ofaseg": EVERYTHING,  # __init__: registration
    "user_tasks": LEAVES | {"ofaseg.data", "ofaseg.evaluation", "ofaseg.models", "ofaseg.checkpoints"},
    "criterions": LEAVES,
    "data_prep": LEAVES | {"ofaseg.data"},
    "tools": EVERYTHING,
    **{leaf: LEAVES for leaf in LEAVES},
}
LAZILY = {"ofaseg.checkpoints": {"ofaseg", "ofaseg.data"}}  # rebuilding a model needs its task, by registration
# where fairseq may show: registered classes and datasets; layers, encoders, losses, shards and metrics are plain torch
HOST = ("ofaseg/*.py", "ofaseg/models/*.py", "ofaseg/data/*_dataset.py", "ofaseg/optim/*", "ofaseg/checkpoints/*", "ofaseg/commands/*")
HOST += ("user_tasks/*", "criterions/*", "tools/*")
PLAIN = tuple(f"ofaseg/{name}.py" for name in ("vocabulary", "structures", "losses", "seg_tokens", "prompts", "atomic"))
OPTIONAL = ("mmcv", "mmseg", "mmengine", "matplotlib", "datasets", "pycocotools")
LOGGING = ("wandb", "tensorboard", "tensorboardX")  # optional too, but fairseq's progress bar imports them where they are installed


def source_files():
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The row of the table that a module belongs to: ofaseg.models.ofa.encoder -> ofaseg.models."""
    return ".".join(module.split(".")[: 2 if module.startswith("ofaseg.") else 1])


def imports_of(path: Path):
    """(imported module, whether inside a function, line) of every import; relative ones as '.<name>'."""
    found = []

    def visit(node, lazy):
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Import):
                found.extend((alias.name, inside, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = "." * child.level + (child.module or "")
                # `from ofaseg import prompts` imports a submodule, `from ofaseg.prompts import NAME` does not
                names = [f"{base}.{alias.name}" for alias in child.names] if base in PACKAGES else [base]
                found.extend((name, inside, child.lineno) for name in names)
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_import_directions(path):
    part = part_of(module_name(path))
    assert part in ALLOWED, f"{part} has no row in this table: say what it may import"
    wrong = []
    for name, lazy, line in imports_of(path):
        top = name.split(".")[0]
        if name.startswith("."):
            wrong.append(f"line {line}: relative import of {name}; import absolutely")
        elif top == "tests" or (top in PACKAGES and not _allowed(part, part_of(name), lazy)):
            wrong.append(f"line {line}: {part} must not import {name}")
        elif top in (*OPTIONAL, *LOGGING) and not lazy:
            wrong.append(f"line {line}: {top} is optional: import it inside the function that uses it")
        elif top in ("fairseq", "fairseq_cli") and not _may_use_fairseq(path.relative_to(ROOT)):
            wrong.append(f"line {line}: this file is plain torch, without fairseq")
    assert not wrong, "\n".join(wrong)


def _allowed(part: str, target: str, lazy: bool) -> bool:
    allowed = ALLOWED[part] | (LAZILY.get(part, set()) if lazy else set())
    return target == part or allowed == EVERYTHING or target in allowed


def _may_use_fairseq(path: Path) -> bool:
    return path.as_posix() not in PLAIN and any(path.match(pattern) for pattern in HOST)


def test_criterions_and_tasks_do_not_know_each_other():
    assert not _allowed("criterions", "user_tasks", False) and not _allowed("user_tasks", "criterions", True)


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_dataclass_files_keep_real_types(path):
    """fairseq's parser raises on string annotations."""
    text = path.read_text(encoding="utf-8")
    assert "FairseqDataclass" not in text or "from __future__ import annotations" not in text


def test_every_registered_class_is_ours():
    """A class of another package under one of our names (OFA has a `criterions` too) would be used silently."""
    registered = fresh_import()["registered"]
    names = {"task/seq2seq_segmentation", "model/segofa", "criterion/seg_token_cross_entropy"}
    assert names | {"optimizer/torch_adamw", "lr_scheduler/cosine_warmup_ratio"} <= set(registered)
    foreign = {name: file for name, file in registered.items() if not Path(file).is_relative_to(ROOT)}
    assert not foreign


def test_import_needs_no_compiled_fairseq_module():
    assert fresh_import()["compiled"] == []


def test_import_needs_no_optional_package():
    imported = {name.split(".")[0] for name in fresh_import()["modules"]}
    assert not imported & set(OPTIONAL)


def test_import_is_silent():
    assert fresh_import()["stderr"] == ""
