"""`ofaseg evaluate` as a script, for torchrun and for checkouts: see `ofaseg/commands/evaluate.py`."""

from ofaseg.commands import common, evaluate

if __name__ == "__main__":
    raise SystemExit(common.main(evaluate, "tools/evaluate.py"))
