"""Opening pages in a headless Chromium, where there is one."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
requires_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH to open pages with")

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr", "--virtual-time-budget=2000")
OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--disable-component-update", "--no-first-run")


def open_page(path, fragment: str = "", screenshot=None, width: int = 1200, height: int = 900) -> str:
    """The document of a page after its scripts ran, as HTML; writes a PNG to `screenshot` when that is given.

    Fails the test when the page writes to the console: errors of scripts, pictures that cannot be loaded, requests it may not make.
    """
    address = Path(path).resolve().as_uri() + fragment
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, *OFFLINE, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        if screenshot is not None:
            subprocess.run([*command, f"--screenshot={screenshot}", address], capture_output=True, timeout=120, check=True)
        done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    said = [line for line in done.stderr.splitlines() if re.search(r"CONSOLE", line)]
    assert not said, "\n".join(said)
    return done.stdout
