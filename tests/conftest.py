"""Shared fixtures: where golden files and the real-data pack lie, and seeds."""

from pathlib import Path

import pytest

from tools.data_pack import data_pack

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--golden-dir", default=str(ROOT / "tests" / "golden"), help="folder whose golden .npz files are checked")


def pytest_generate_tests(metafunc):
    """`golden_file` parameters: every file of the kind named by the module's GOLDEN_KIND in --golden-dir."""
    if "golden_file" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--golden-dir"))
        files = sorted(folder.glob(f"{metafunc.module.GOLDEN_KIND}_*.npz"))
        if not files:
            raise pytest.UsageError(f"--golden-dir {folder}: no {metafunc.module.GOLDEN_KIND}_*.npz file there")
        metafunc.parametrize("golden_file", files, ids=[file.stem for file in files], scope="module")


@pytest.fixture(scope="session")
def golden_dir(request) -> Path:
    return Path(request.config.getoption("--golden-dir"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    pack = data_pack()
    if pack is None:
        pytest.skip("the real-data pack is absent: set OFASEG_DATA to its folder")
    return pack


@pytest.fixture(autouse=True)
def fixed_seeds():
    import numpy as np
    import torch

    np.random.seed(0)
    torch.manual_seed(0)
