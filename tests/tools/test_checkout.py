"""The scripts that people run by path work from a plain copy of the repository, with the code of that copy."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("ofaseg", "user_tasks", "criterions", "data_prep", "tools")


def is_script(path: Path) -> bool:
    """Whether a file has an `if __name__ == "__main__"` block."""
    blocks = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    return any(ast.unparse(block.test) == "__name__ == '__main__'" for block in blocks)


SCRIPTS = [path.relative_to(ROOT) for folder in ("tools", "data_prep") for path in sorted((ROOT / folder).glob("*.py")) if is_script(path)]
SCRIPTS = [path for path in SCRIPTS if not path.name.startswith("benchmark_")]  # parts of benchmark.py, started with -m

FACTS = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
sys.path[0] = sys.argv[0].rpartition("/")[0]  # what python puts there when it runs a file
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
import ofaseg
print("package:", ofaseg.__file__)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the packages in another place, so that an installed package cannot stand in for it."""
    root = tmp_path_factory.mktemp("checkout")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    return root


def test_the_list_of_scripts():
    assert {"tools/evaluate.py", "tools/predict.py", "tools/visualize.py", "tools/export_model.py"} <= set(map(str, SCRIPTS))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_runs_with_the_code_beside_it(checkout, tmp_path, script):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FACTS, str(checkout / script)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"package: {checkout}" in run.stdout
