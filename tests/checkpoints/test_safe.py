"""Checkpoint files are read without running their code."""

import argparse
import enum
import json
import os

import pytest
import torch
from omegaconf import OmegaConf

from ofaseg.checkpoints import CheckpointError, load_state
from ofaseg.checkpoints.safe import load_configuration

WEIGHTS = {"layer.weight": torch.arange(3.0)}


class Foreign:
    """A class no checkpoint should mention."""


Foreign.__module__ = "somewhere.unknown"


def test_plain_checkpoint(tmp_path):
    torch.save({"model": WEIGHTS, "cfg": {"model": {"_name": "x"}}, "task_state": {"a": 1}}, tmp_path / "a.pt")
    state = load_state(tmp_path / "a.pt")
    assert torch.equal(state["model"]["layer.weight"], WEIGHTS["layer.weight"])
    assert state["cfg"] == {"model": {"_name": "x"}} and state["task_state"] == {"a": 1}


@pytest.mark.parametrize("legacy", [False, True])
def test_the_configuration_alone(tmp_path, legacy):
    cfg = OmegaConf.create({"task": {"_name": "x", "nested": {"a": [1, None]}}})
    torch.save({"model": WEIGHTS, "cfg": cfg}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    assert load_configuration(tmp_path / "a.pt") == {"task": {"_name": "x", "nested": {"a": [1, None]}}}
    torch.save(WEIGHTS, tmp_path / "bare.pt")
    assert load_configuration(tmp_path / "bare.pt") == {}
    (tmp_path / "m.json").write_text('{"model": {"_name": "y"}}')
    (tmp_path / "m.safetensors").write_bytes(b"weights are not read")
    assert load_configuration(tmp_path / "m.safetensors")["model"] == {"_name": "y"}
    (tmp_path / "m.json").write_text("[]")
    for name in ("m.safetensors", "absent.pt"):
        with pytest.raises(CheckpointError, match=name.removesuffix(".safetensors")):
            load_configuration(tmp_path / name)


def test_bare_state_dict(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pt")
    assert load_state(tmp_path / "a.pt")["cfg"] is None


@pytest.mark.parametrize("legacy", [False, True])
def test_namespaces_and_omegaconf_become_plain(tmp_path, legacy):
    cfg = OmegaConf.create({"task": {"category_list": "cat, dog", "nested": {"a": [1, "b", None]}}})
    content = {"model": WEIGHTS, "cfg": cfg, "args": argparse.Namespace(arch="ofa_base")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    assert load_state(tmp_path / "a.pt")["cfg"] == {"task": {"category_list": "cat, dog", "nested": {"a": [1, "b", None]}}}


def test_old_arguments_serve_as_configuration(tmp_path):
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(arch="ofa_base")}, tmp_path / "a.pt")
    assert load_state(tmp_path / "a.pt")["cfg"]["model"] == {"arch": "ofa_base"}


class Backend(enum.Enum):
    C10D = "c10d"


def test_enum_of_fairseq_becomes_its_value(tmp_path, monkeypatch):
    from fairseq.dataclass import constants

    monkeypatch.setattr(Backend, "__module__", constants.__name__)
    monkeypatch.setattr(constants, "Backend", Backend, raising=False)
    torch.save({"model": WEIGHTS, "cfg": {"backend": Backend.C10D}}, tmp_path / "a.pt")
    assert load_state(tmp_path / "a.pt")["cfg"] == {"backend": "c10d"}


def test_what_the_process_allows_stays_allowed(tmp_path):
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(a=1)}, tmp_path / "a.pt")
    before = set(torch.serialization.get_safe_globals())
    load_state(tmp_path / "a.pt")
    assert set(torch.serialization.get_safe_globals()) == before


class _Command:
    def __reduce__(self):
        return os.system, ("touch " + self.path,)


def test_commands_do_not_run(tmp_path):
    command = _Command()
    command.path = str(tmp_path / "ran")
    torch.save({"model": WEIGHTS, "cfg": command}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="a.pt"):
        load_state(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_classes_without_a_place_in_checkpoints_are_named(tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("somewhere.unknown")
    module.Foreign = Foreign
    monkeypatch.setitem(sys.modules, "somewhere", types.ModuleType("somewhere"))
    monkeypatch.setitem(sys.modules, "somewhere.unknown", module)
    torch.save({"model": WEIGHTS, "cfg": Foreign()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="somewhere.unknown.Foreign.*safetensors"):
        load_state(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 damaged", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"a{suffix}"):
        load_state(path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="not found"):
        load_state(tmp_path / "no.pt")


@pytest.mark.parametrize("content", [[1, 2], {"optimizer": 3}])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="a.pt"):
        load_state(tmp_path / "a.pt")


def test_safetensors_with_its_json(tmp_path):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "m.safetensors")
    assert load_state(tmp_path / "m.safetensors")["cfg"] is None
    (tmp_path / "m.json").write_text(json.dumps({"model": {"_name": "x"}}))
    assert load_state(tmp_path / "m.safetensors")["cfg"] == {"model": {"_name": "x"}}
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(CheckpointError, match="m.json"):
        load_state(tmp_path / "m.safetensors")


def test_no_message_recommends_unsafe_loading(tmp_path):
    """torch's own message does: a text file read as a pickle."""
    (tmp_path / "run.pt").write_text("# a script\n")
    with pytest.raises(CheckpointError, match="run.pt.*give a .pt file") as error:
        load_state(tmp_path / "run.pt")
    assert "weights_only" not in str(error.value)
