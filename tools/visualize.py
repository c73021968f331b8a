"""`ofaseg report` as a script, for torchrun and for checkouts: see `ofaseg/commands/report.py`."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the packages beside this folder importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ofaseg.commands import common, report  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(common.main(report, "tools/visualize.py"))
