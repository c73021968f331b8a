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

RUN_EACH = """
import os, runpy, sys, traceback
import cv2, fairseq, torch, torchvision  # what takes seconds and is not ours, once for all scripts

def run(script):
    sys.argv = [script, "--help"]
    sys.path[0] = script.rpartition("/")[0]  # what python puts there when it runs a file
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
    import ofaseg
    print("package:", ofaseg.__file__, flush=True)

assert "ofaseg" not in sys.modules
for number, script in enumerate(sys.argv[1:]):
    if not os.fork():
        output = os.open(f"{number}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            run(script)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(0)
    os.wait()
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


@pytest.fixture(scope="module")
def printed(checkout, tmp_path_factory):
    """Script -> what it printed, each in a process of its own that had imported nothing of ours."""
    folder = tmp_path_factory.mktemp("printed")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN_EACH, *(str(checkout / script) for script in SCRIPTS)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {script: (folder / f"{number}.txt").read_text() for number, script in enumerate(SCRIPTS)}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_runs_with_the_code_beside_it(checkout, printed, script):
    assert "usage: " in printed[script] and f"package: {checkout}" in printed[script], printed[script]
