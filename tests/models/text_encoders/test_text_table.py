"""Tables of text vectors: every kind of file, the tokenizer of names, wrong tables, real vectors."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from ofaseg.models.state import CheckpointError
from ofaseg.models.text_encoders.frozen import TableTexts
from ofaseg.models.text_encoders.text_table import NameTokenizer, TextTable


@pytest.fixture(params=["npz", "npy", "safetensors"])
def table(request, tmp_path):
    names, vectors = ["Traffic light", "cat", "sky"], np.random.default_rng(0).standard_normal((3, 7)).astype(np.float16)
    path = tmp_path / f"names.{request.param}"
    if request.param == "npz":
        np.savez(path, names=np.array(names), vectors=vectors)
    elif request.param == "npy":
        np.save(path, vectors)
        path.with_suffix(".names.txt").write_text("\n".join(names) + "\n")
    else:
        save_file(dict(zip(names, vectors)), path)
    return path, dict(zip(names, vectors.astype(np.float32)))


def test_names_find_their_vectors(table):
    """Whatever their case and blanks; vectors come out with length 1."""
    path, rows = table
    read = TextTable.read(path)
    tokenizer, tower = NameTokenizer(read), TableTexts(read)
    ids, mask = tokenizer(["sky", "traffic_light"], 77)
    assert ids.shape == mask.shape == (2, 1) and len(tokenizer) == 3 == tower.vocab_size and tower.dim == 7
    expected = np.stack([rows[name] / np.linalg.norm(rows[name]) for name in ("sky", "Traffic light")])
    np.testing.assert_allclose(tower(ids, mask), expected, atol=1e-6)
    with pytest.raises(ValueError, match="no vector of 'dog', 'a photo of a cat'; it has 3 names, .* Templates have to be 'name'"):
        tokenizer(["dog", "cat", "a photo of a cat"])


@pytest.mark.parametrize(
    "names, vectors, message",
    [
        (["a", "b"], np.ones((3, 2)), "2 names for vectors of shape"),
        (["a", "b"], np.array([[1.0, 2], [0, 0]]), "vector of 'b' is not finite, or zero"),
        (["a", "b"], np.array([[1.0, np.nan], [1, 0]]), "vector of 'a' is not finite, or zero"),
        (["a b", "A_b"], np.ones((2, 2)), "'a b' and 'A_b' are one name"),
    ],
)
def test_bad_tables(tmp_path, names, vectors, message):
    np.savez(tmp_path / "t.npz", names=np.array(names), vectors=vectors)
    with pytest.raises(CheckpointError, match=message):
        TextTable.read(tmp_path / "t.npz")


def test_unreadable_tables(tmp_path):
    with pytest.raises(CheckpointError, match="not found"):
        TextTable.read(tmp_path / "t.npz")
    with pytest.raises(CheckpointError, match="come as .npz, .npy, .safetensors"):
        TextTable.read(tmp_path / "t.json")
    for name in ("t.npz", "t.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(CheckpointError, match="cannot be read"):
            TextTable.read(tmp_path / name)
    np.save(tmp_path / "t.npy", np.ones((2, 2)))
    with pytest.raises(CheckpointError, match="needs t.names.txt beside it"):
        TextTable.read(tmp_path / "t.npy")


def test_real_text_vectors(real_data):
    table = TextTable.read(real_data / "text_embeddings" / "coco80_clip_vitb32_a.npy")
    ids, _ = NameTokenizer(table)(["cat", "dog", "bus", "traffic light"])
    assert len(table.names) == 80 and ids[0, 0] == table.names.index("cat")
    unit = table.vectors / np.linalg.norm(table.vectors, axis=1, keepdims=True)
    cat, dog, bus, _ = ids[:, 0].tolist()
    assert unit[cat] @ unit[dog] > unit[cat] @ unit[bus]
