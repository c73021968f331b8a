"""What tests of data share."""

import pytest


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """`datasets` keeps its copies of Parquet files below the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
