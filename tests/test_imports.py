"""Who may import whom (style: layers that meet only in tasks), read from the source without importing it."""

import ast
from pathlib import Path

import pytest

from tests.integration.import_facts import ROOT, fresh_import

PACKAGES = ("ofaseg", "user_tasks", "criterions", "data_prep", "tools")

LEAVES = {
    f"ofaseg.{name}"
    for name in ("structures", "vocabulary", "prompts", "seg_tokens", "losses", "atomic", "tokenizers", "wordpiece", "distributed", "utils")
} | {"ofaseg.clip_bpe", "ofaseg.mask_losses", "ofaseg.mask_matching"}
EVERYTHING = {"*"}
# part -> the parts it may import, beside itself; "lazily" only inside functions
ALLOWED = {
    "ofaseg.models": LEAVES,
    "ofaseg.data": LEAVES,
    "ofaseg.evaluation": LEAVES,
    "ofaseg.checkpoints": LEAVES | {"ofaseg.models"},
    "ofaseg.doctor": LEAVES | {"ofaseg.data", "ofaseg.checkpoints", "ofaseg.models"},
    "ofaseg.subclasses": LEAVES,
    "ofaseg.compat": {"ofaseg.stand_ins"},
    "ofaseg.stand_ins": set(),
    "ofaseg.optim": set(),
    "ofaseg.commands": EVERYTHING,
    "ofaseg.cli": EVERYTHING,
    "ofaseg.hydra_train": set(),
    "ofaseg": EVERYTHING,  # __init__: registration
    "user_tasks": LEAVES | {"ofaseg.data", "ofaseg.evaluation", "ofaseg.models", "ofaseg.checkpoints", "ofaseg.subclasses"},
    "criterions": LEAVES,
    "data_prep": LEAVES | {"ofaseg.data"},
    "tools": EVERYTHING,
    **{leaf: LEAVES for leaf in LEAVES},
}
# rebuilding a model needs its task, checking a configuration every name, by registration
LAZILY = {"ofaseg.checkpoints": {"ofaseg", "ofaseg.data"}, "ofaseg.doctor": {"ofaseg"}}
# where fairseq may show: registered classes and datasets; layers, encoders, losses, shards and metrics are plain torch
HOST = ("ofaseg/*.py", "ofaseg/models/*.py", "ofaseg/data/*_dataset.py", "ofaseg/optim/*", "ofaseg/checkpoints/*", "ofaseg/commands/*")
HOST += ("user_tasks/*", "criterions/*", "tools/*", "ofaseg/doctor/run_config.py")
PLAIN_NAMES = ("vocabulary", "structures", "losses", "mask_losses", "mask_matching", "seg_tokens", "prompts", "atomic")
PLAIN = tuple(f"ofaseg/{name}.py" for name in PLAIN_NAMES)
OPTIONAL = ("mmcv", "mmseg", "mmengine", "matplotlib", "datasets", "pycocotools", "pydensecrf", "ray", "openai", "open_clip", "ftfy")
LOGGING = ("wandb", "tensorboard", "tensorboardX")  # optional too, but fairseq's progress bar imports them where they are installed


def source_files():
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The row of the table that a module belongs to: ofaseg.models.ofa.encoder -> ofaseg.models."""
    return ".".join(module.split(".")[: 2 if module.startswith("ofaseg.") else 1])


def imports_of(text: str):
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

    visit(ast.parse(text), False)
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_import_directions(path):
    wrong = wrong_imports(path, path.read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)


def wrong_imports(path: Path, text: str) -> list[str]:
    """What the table forbids in a file of ours at `path` with content `text`."""
    part = part_of(module_name(path))
    assert part in ALLOWED, f"{part} has no row in this table: say what it may import"
    wrong = []
    for name, lazy, line in imports_of(text):
        top = name.split(".")[0]
        if name.startswith("."):
            wrong.append(f"line {line}: relative import of {name}; import absolutely")
        elif top == "tests" or (top in PACKAGES and not _allowed(part, part_of(name), lazy)):
            wrong.append(f"line {line}: {part} must not import {name}")
        elif top in (*OPTIONAL, *LOGGING) and not lazy:
            wrong.append(f"line {line}: {top} is optional: import it inside the function that uses it")
        elif top in ("fairseq", "fairseq_cli") and not _may_use_fairseq(path.relative_to(ROOT)):
            wrong.append(f"line {line}: this file is plain torch, without fairseq")
    return wrong


def _allowed(part: str, target: str, lazy: bool) -> bool:
    allowed = ALLOWED[part] | (LAZILY.get(part, set()) if lazy else set())
    return target == part or allowed == EVERYTHING or target in allowed


def _may_use_fairseq(path: Path) -> bool:
    return path.as_posix() not in PLAIN and any(path.match(pattern) for pattern in HOST)


LAZY = "def f():\n    "


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("criterions/new.py", "import user_tasks.segmentation_task", "criterions must not import user_tasks"),
        ("criterions/new.py", LAZY + "from ofaseg.models import ifseg", "criterions must not import ofaseg.models"),
        ("user_tasks/new.py", LAZY + "from criterions.seg_token_cross_entropy import SegTokenCrossEntropy", "must not import criterions"),
        ("ofaseg/models/new.py", "from ofaseg.data import shards", "ofaseg.models must not import ofaseg.data"),
        ("ofaseg/data/new.py", "import ofaseg.models.ifseg", "ofaseg.data must not import ofaseg.models"),
        ("ofaseg/evaluation/new.py", "from ofaseg import data", "ofaseg.evaluation must not import ofaseg.data"),
        ("ofaseg/losses.py", "from ofaseg.models.ofa.embeddings import token_bucket", "ofaseg.losses must not import ofaseg.models"),
        ("ofaseg/checkpoints/new.py", "from ofaseg.data.shards import load_vocabulary", "ofaseg.checkpoints must not import ofaseg.data"),
        ("ofaseg/data/new.py", "from . import rows", "import absolutely"),
        ("tools/new.py", "from tests.toy import NAMES", "tools must not import tests"),
        ("tools/new.py", "import matplotlib.pyplot", "matplotlib is optional"),
        ("ofaseg/data/codec.py", LAZY + "import fairseq", "without fairseq"),
    ],
)
def test_the_table_forbids(file, text, message):
    """The check of the files above can fail: what it must find, written as an import."""
    wrong = wrong_imports(ROOT / file, text)
    assert len(wrong) == 1 and message in wrong[0]


@pytest.mark.parametrize(
    "file, text",
    [
        ("user_tasks/new.py", "from ofaseg.models import ifseg\nimport fairseq.tasks"),
        ("ofaseg/checkpoints/new.py", LAZY + "from ofaseg.data.shards import load_vocabulary"),
        ("ofaseg/models/ofa/new.py", "from ofaseg.utils.resize import resize_matrix\nimport torch"),
        ("tools/new.py", LAZY + "import matplotlib.pyplot"),
    ],
)
def test_the_table_allows(file, text):
    assert not wrong_imports(ROOT / file, text)


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_dataclass_files_keep_real_types(path):
    """fairseq's parser raises on string annotations."""
    text = path.read_text(encoding="utf-8")
    assert "FairseqDataclass" not in text or "from __future__ import annotations" not in text


def declared_classes() -> dict[str, str]:
    """kind/name -> file of every class that our sources register with fairseq by a decorator."""
    declared = {}
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                name = decorator.func.id if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) else ""
                if name.startswith("register_"):
                    declared[f"{name.removeprefix('register_')}/{ast.literal_eval(decorator.args[0])}"] = str(path)
    return declared


def test_every_registered_class_is_ours():
    """fairseq passes over a second class of one name in silence, and OFA has a `criterions` too: what our sources declare has to be
    what is registered, from these files, and nothing else beside fairseq's own."""
    declared = declared_classes()
    names = {"task/seq2seq_segmentation", "model/segofa", "criterion/seg_token_cross_entropy"}
    assert names | {"optimizer/torch_adamw", "lr_scheduler/cosine_warmup_ratio"} <= set(declared)
    assert fresh_import()["registered"] == declared


def test_import_needs_no_compiled_fairseq_module():
    assert fresh_import()["compiled"] == []


def test_import_needs_no_optional_package():
    imported = {name.split(".")[0] for name in fresh_import()["modules"]}
    assert not imported & set(OPTIONAL)


def test_import_is_quick():
    """Packages of many modules, of which a run uses none or one function, wait for that run."""
    assert not {"sklearn", "scipy", "pandas", "wandb", "torch.distributed.fsdp", "torch._dynamo"} & set(fresh_import()["modules"])


def test_import_is_silent():
    assert fresh_import()["stderr"] == ""
