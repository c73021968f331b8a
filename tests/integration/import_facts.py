"""What ``import ofaseg`` does to a fresh process: modules, registered classes, root logger. Prints JSON."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@functools.cache
def fresh_import(no_compat: str = "") -> dict:
    """Facts from a new process with ``OFASEG_NO_COMPAT=no_compat``, and its error stream under "stderr"."""
    environment = {**os.environ, "OFASEG_NO_COMPAT": no_compat, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.integration.import_facts"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {**json.loads(run.stdout), "stderr": run.stderr}


def _registered() -> dict:
    """kind/name -> file of the class, of everything that is not fairseq's."""
    from fairseq.models import MODEL_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_REGISTRY

    kinds = {"task": TASK_REGISTRY, "model": MODEL_REGISTRY, **{kind: entry["registry"] for kind, entry in REGISTRIES.items()}}
    classes = {f"{kind}/{name}": cls for kind, registry in kinds.items() for name, cls in registry.items()}
    return {key: sys.modules[cls.__module__].__file__ for key, cls in classes.items() if not cls.__module__.startswith("fairseq.")}


if __name__ == "__main__":
    import logging

    import ofaseg  # noqa: F401

    root = logging.getLogger()
    files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    compiled = [name for name, file in files.items() if name.startswith("fairseq") and file.endswith(".so")]
    facts = {"modules": sorted(files), "compiled": compiled, "registered": _registered(), "root": [root.level, len(root.handlers)]}
    print(json.dumps(facts))
