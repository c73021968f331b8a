"""Weights out of TorchScript archives: equal to torch's own reading, and nothing of the file is run."""

import io
import pickle
import zipfile

import pytest
import torch

from ofaseg.checkpoints import CheckpointError, load_state
from ofaseg.checkpoints.torchscript import archive_weights, is_torchscript


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3)
        self.register_buffer("count", torch.tensor(7))
        self.sizes = [1, 2]

    def forward(self, x):
        return self.conv(x) * self.sizes[0]


class Program(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Inner(), Inner().half()
        self.table = torch.nn.Parameter(torch.randn(4, 6).t())
        self.tied = self.first.conv.weight
        self.name = "program"

    def forward(self, x):
        return self.first(x)


@pytest.fixture
def archive(tmp_path):
    torch.jit.save(torch.jit.script(Program()), tmp_path / "program.pt")
    return tmp_path / "program.pt"


def test_as_torch_reads_it(archive):
    expected = torch.jit.load(archive).state_dict()
    found = archive_weights(archive)
    assert is_torchscript(archive) and set(found) == set(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
    assert load_state(archive)["model"].keys() == expected.keys()


def rewritten(archive, name: str, content: bytes):
    path = archive.with_name("changed.pt")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, content if entry.endswith(f"/{name}") else old.read(entry))
    return path


class Harmful:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("data.pkl", pickle.dumps(Harmful()), "mentions builtins.print, which has no place among weights"),
        ("data.pkl", b"x", "cannot be read as weights"),
        ("data.pkl", pickle.dumps({}), "without weights"),
        ("data/0", b"", "cannot be read as weights"),
    ],
)
def test_bad_archives(archive, name, content, message, capsys):
    path = rewritten(archive, name, content)
    with pytest.raises(CheckpointError, match=message) as error:
        archive_weights(path)
    assert str(error.value).startswith(str(path)) and capsys.readouterr().out == ""


def test_other_files_are_no_archives(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(io.BytesIO(b"text").getvalue())
    assert not is_torchscript(tmp_path / "a.pt") and not is_torchscript(tmp_path / "b.pt")
