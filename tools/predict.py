"""`ofaseg predict` as a script, for torchrun and for checkouts: see `ofaseg/commands/predict.py`."""

from ofaseg.commands import common, predict

if __name__ == "__main__":
    raise SystemExit(common.main(predict, "tools/predict.py"))
