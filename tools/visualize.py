"""`ofaseg report` as a script, for torchrun and for checkouts: see `ofaseg/commands/report.py`."""

from ofaseg.commands import common, report

if __name__ == "__main__":
    raise SystemExit(common.main(report, "tools/visualize.py"))
