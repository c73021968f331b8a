"""What an installed wheel holds, and that it works without the checkout."""

import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that no build folder is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("ofaseg", "user_tasks", "criterions", "data_prep"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", out, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_readme_is_finished():
    """No placeholder is left, and every relative link leads somewhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "@@" not in text
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links), links


def test_wheel_holds_code_and_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "ofaseg/config/ifseg_shapes.yaml",
        "ofaseg/assets/shapes/dict.txt",
        "ofaseg/assets/shapes/vocab.txt",
        "ofaseg/assets/shapes/segofa_nano.safetensors",
        "ofaseg/assets/shapes/segofa_nano.json",
        "ofaseg/evaluation/settings/simseg.json",
        "ofaseg/data/folds.json",
        "data_prep/class_names/ade150.txt",
        "data_prep/class_names/verbatim/coco_panoptic133.txt",
        "data_prep/subclasses/ade150.json",
        "user_tasks/seq2seq_segmentation.py",
        "criterions/seg_token_cross_entropy.py",
        "ofaseg/commands/predict.py",
    } <= names
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "tools/")) for name in names)


def test_an_unpacked_wheel_runs_away_from_the_checkout(wheel, tmp_path):
    """The command line works, and fairseq-train finds the plug-in by name."""
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    site = str(target)
    script = f"""
import sys
sys.path[:] = [{site!r}] + [p for p in sys.path if p not in ("", {str(ROOT)!r})]
import ofaseg, ofaseg.cli
from fairseq.tasks import TASK_REGISTRY
assert ofaseg.__file__.startswith({site!r}), ofaseg.__file__
assert sys.modules[TASK_REGISTRY["seq2seq_segmentation"].__module__].__file__.startswith({site!r})
sys.exit(ofaseg.cli.main(["evaluate", "--help"]))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and "folder of shards" in result.stdout, result.stderr[-2000:]
