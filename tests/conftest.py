"""Shared fixtures: where golden files and the real-data pack lie, and seeds."""

import os
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


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is kept between runs goes to a folder of this session, in child processes too; the user's cache stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFASEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """For modules of very small models: threads that wait for each other take ten times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fixed_seeds():
    import numpy as np
    import torch

    np.random.seed(0)
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # which would note down for a GPU that is not there, with a traceback each time, what to do once it comes
        torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """No test cuts the power: flushing a file does not wait for the disk. A closed handle still is an error."""

    def fsync(handle) -> None:
        os.fstat(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield
