"""Run many short fairseq jobs without importing fairseq each time.

Importing fairseq costs four seconds of CPU. A server process imports it once and forks a child per job; the child gets its
own environment, arguments and output file, so a job in it behaves like a fresh ``fairseq-train``. The server itself
runs no training (a process that has run one must not fork: autograd and OpenMP refuse).

>>> server = shared_server()
>>> outcome = server.train(["data", "--user-dir", "ofaseg", "--task", "seq2seq_segmentation", ...])
>>> outcome.check().logs("valid")[-1]["valid_mIoU"]

``nproc=2`` forks two processes as torchrun would start them; ``kill_after="valid on"`` kills the job as soon as its
output contains that text.
"""

import atexit
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# what the first optimizer or wrapper of a process would import, two seconds of CPU in every job
LATE_IMPORTS = ("torch._dynamo", "torch.distributed.optim")
GRACE_S = 3.0  # how long the other processes of a job may live after one of them failed


# ---------------------------------------------------------------------------------------------------------- client


@dataclass
class Outcome:
    """How a job ended.

    Attributes:
        returncode: exit status of the first process that failed, else 0; -9 when killed; 124 when out of time.
        text: what rank 0 printed (stdout and stderr together).
        texts: the same of every rank.
        value: what the called function returned on rank 0 (None for ``train``).
    """

    returncode: int
    texts: list = field(default_factory=list)
    value: object = None

    @property
    def text(self) -> str:
        return self.texts[0]

    def check(self) -> "Outcome":
        """Returns itself, or fails with the end of the output."""
        assert self.returncode == 0, f"exit status {self.returncode}\n" + "\n--- next rank\n".join(t[-4000:] for t in self.texts)
        return self

    def logs(self, tag: str = "train") -> list[dict]:
        """Lines that ``--log-format json`` printed under ``tag`` (train, train_inner, valid, ...), numbers as floats."""
        rows = []
        for line in self.text.splitlines():
            parts = line.split(" | ", 3)
            if len(parts) == 4 and parts[2] == tag and parts[3].startswith("{"):
                rows.append({key: _number(value) for key, value in json.loads(parts[3]).items()})
        return rows


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


class ForkServer:
    """A process with ``preload`` imported that forks a child per request.

    Args:
        preload: modules to import before the first fork.
        env: environment of the server, on top of this process's; jobs inherit it.
    """

    def __init__(self, preload=("fairseq_cli.train", "ofaseg"), env=None):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [environment.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "tests.integration.forked", *preload]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True)

    def call(self, target: str, *args, **options) -> Outcome:
        """Runs ``module:function`` with JSON-able arguments in a child. Options: see ``_request``."""
        return self._request(target=target, args=args, **options)

    def train(self, argv, **options) -> Outcome:
        """Runs ``fairseq-train`` with these arguments in a child. Options: see ``_request``."""
        argv = ["fairseq-train", "--cpu", "--log-format", "json", *map(str, argv)]
        return self._request(target="fairseq_cli.train:cli_main", args=(), argv=argv, **options)

    def _request(self, target, args, argv=("job",), env=None, nproc=1, timeout=120.0, kill_after=None, cwd=None) -> Outcome:
        request = dict(target=target, args=args, argv=list(argv), env=env or {}, nproc=nproc, timeout=timeout)
        request.update(kill_after=kill_after, cwd=str(cwd or ROOT))
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, "the server of forked jobs ended; its error is above"
        return Outcome(**json.loads(reply))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


@functools.cache
def shared_server(preload=("fairseq_cli.train", "ofaseg"), **env) -> ForkServer:
    """One server per set of arguments for the whole test session."""
    server = ForkServer(preload, env)
    atexit.register(server.close)
    return server


# ---------------------------------------------------------------------------------------------------------- server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _child(request: dict, folder: str, rank: int, launch: dict) -> None:
    """Never returns: runs the job in this forked process and exits with its status."""
    os.setsid()
    output = os.open(os.path.join(folder, f"{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 0
    try:
        os.environ.update(request["env"], **launch)
        os.chdir(request["cwd"])
        sys.argv = request["argv"]
        module, _, name = request["target"].partition(":")
        value = getattr(importlib.import_module(module), name)(*request["args"])
        if module != "fairseq_cli.train":
            Path(folder, f"{rank}.json").write_text(json.dumps(value))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _fork_all(request: dict, folder: str) -> dict:
    """-> rank of each child's process id."""
    ranks, port = {}, free_port()
    for rank in range(request["nproc"]):
        Path(folder, f"{rank}.txt").touch()
        launch = {}
        if request["nproc"] > 1:
            launch = dict(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE=str(request["nproc"]))
            launch.update(RANK=str(rank), LOCAL_RANK=str(rank))
        pid = os.fork()
        if pid == 0:
            _child(request, folder, rank, launch)
        ranks[pid] = rank
    return ranks


def _kill(pids) -> None:
    for pid in pids:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not called setsid yet, or is gone
            os.kill(pid, signal.SIGKILL)


def _wait(request: dict, ranks: dict, folder: str) -> int:
    """Waits for all children, killing those that outlive the time limit, a failed sibling or the wanted text."""
    running, status, deadline = set(ranks), 0, time.monotonic() + request["timeout"]
    while running:
        for pid in list(running):
            done, wait_status = os.waitpid(pid, os.WNOHANG)
            if done:
                running.discard(pid)
                code = os.waitstatus_to_exitcode(wait_status)
                if code and not status:
                    status, deadline = code, min(deadline, time.monotonic() + GRACE_S)
        wanted = request["kill_after"]
        if running and wanted and wanted in Path(folder, "0.txt").read_text(errors="replace"):
            _kill(running)
            request["kill_after"] = None
        if running and time.monotonic() > deadline:
            status = status or 124
            _kill(running)
        time.sleep(0.01)
    return status


def _serve(preload: list) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print belongs to the error stream
    for module in (*preload, *LATE_IMPORTS):
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.flush()
            status = _wait(request, _fork_all(request, folder), folder)
            texts = [Path(folder, f"{rank}.txt").read_text(errors="replace") for rank in range(request["nproc"])]
            value = Path(folder, "0.json")
            reply = dict(returncode=status, texts=texts, value=json.loads(value.read_text()) if value.exists() else None)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    _serve(sys.argv[1:])
