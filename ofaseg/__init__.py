"""ofaseg: open-vocabulary image segmentation as a fairseq plug-in (`--user-dir ofaseg`)."""

__version__ = "0.1.0"
