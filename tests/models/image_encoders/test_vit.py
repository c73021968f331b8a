"""The vision transformer against timm's own pass, and positions against the published formula."""

import pytest
import torch
import torch.nn.functional as F

from ofaseg.models.image_encoders.vit import PatchTransformer, interpolate_positions
from ofaseg.models.layers.whole_tiles import whole_tiles

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    tower = PatchTransformer("vit_nano_patch8", 32).eval()
    torch.nn.init.normal_(tower.vit.pos_embed)
    torch.nn.init.normal_(tower.vit.cls_token)
    return tower


@torch.no_grad()
def test_tokens_are_timms_at_the_native_size(tower):
    images = torch.randn(2, 3, 32, 32)
    tokens = tower(images)
    assert tokens.shape == (2, 1 + 16, tower.dim) and tower.patch == 8
    torch.testing.assert_close(tokens, tower.vit.forward_features(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tower(images[1:]), tokens[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("height, width", [(40, 40), (24, 56), (64, 16)])
@torch.no_grad()
def test_other_sizes_are_a_tower_whose_table_was_interpolated(tower, height, width):
    """timm, built for that size and given positions of each grid row and column of the bicubic resize."""
    images = torch.randn(1, 3, height, width)
    other = PatchTransformer("vit_nano_patch8", (height, width)).eval()
    state = tower.state_dict()
    grid = state["vit.pos_embed"][0, 1:].view(4, 4, -1)
    wide = torch.stack(
        [F.interpolate(grid[None, :, :, d][None], (height // 8, width // 8), mode="bicubic")[0, 0] for d in range(tower.dim)], -1
    )
    state["vit.pos_embed"] = torch.cat([state["vit.pos_embed"][:, :1], wide.flatten(0, 1)[None]], 1)
    other.load_state_dict(state)
    torch.testing.assert_close(tower(images), other.vit.forward_features(images), atol=1e-5, rtol=1e-5)


def test_positions_from_14_to_18_are_the_published_ones():
    """Digest 3.1: the extra token stays, the grid is resized bicubically without aligned corners or antialiasing."""
    positions = torch.randn(1, 197, 6)
    grid = positions[:, 1:].reshape(1, 14, 14, 6).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(18, 18), mode="bicubic", align_corners=False, antialias=False)
    expected = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 324, 6)], 1)
    found = interpolate_positions(positions, 18, 18)
    assert found.shape == (1, 325, 6) and torch.equal(found, expected)


def test_positions_of_the_own_grid_stay():
    positions = torch.randn(1, 17, 6)
    assert interpolate_positions(positions, 4, 4) is positions
    assert not torch.equal(interpolate_positions(positions, 2, 8), positions)


@pytest.mark.parametrize("rows", [1 + 12, 1 + 8, 1, 0])
def test_positions_of_no_square_are_an_error(rows):
    with pytest.raises(ValueError, match=f"{rows} position rows are not one for CLS and a square grid"):
        interpolate_positions(torch.zeros(1, rows, 6), 4, 4)


def test_a_side_that_is_no_multiple_of_the_patch(tower):
    with pytest.raises(ValueError, match=r"photos of 32x36 pixels \(height x width\): both sides must be multiples of 8"):
        tower(torch.zeros(1, 3, 32, 36))


@pytest.mark.parametrize("height, width, filled", [(40, 200, 128), (88, 112, 160)])
def test_tokens_are_filled_up_unseen(tower, monkeypatch, height, width, filled):
    """Tokens and gradients are those of the tower without filling: in float32 passed off as bfloat16, where rounding hides nothing."""
    images, seen = torch.randn(2, 3, height, width), []
    hook = tower.vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))

    def run(work_type: torch.dtype) -> tuple[torch.Tensor, list]:
        monkeypatch.setattr("ofaseg.models.layers.whole_tiles._work_type", lambda tokens: work_type)
        tower.zero_grad()
        tokens = tower(images)
        tokens.square().mean().backward()
        return tokens.detach(), [parameter.grad.clone() for parameter in tower.parameters()]

    plain, plain_gradients = run(torch.float32)
    tokens, gradients = run(torch.bfloat16)
    hook.remove()
    tower.zero_grad()
    count = height * width // 64 + 1
    assert tokens.shape == plain.shape == (2, count, tower.dim) and seen == [count, filled]
    torch.testing.assert_close(tokens, plain, atol=1e-4, rtol=1e-4)
    for found, wanted in zip(gradients, plain_gradients):
        assert (found - wanted).norm() <= 1e-4 * wanted.norm() + 1e-7


@torch.no_grad()
def test_in_bfloat16_tokens_are_those_of_float32(tower):
    images = torch.randn(2, 3, 40, 200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tower(images)
    torch.testing.assert_close(found, tower(images), atol=0.1, rtol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("bf16, graphs", [(False, 1), (True, 3)])
def test_few_graphs_for_all_sizes(tower, bf16, graphs):
    """Compiled for changing sizes; in bfloat16 there are three graphs: for tokens filled up, whole tiles, and too many zeros."""
    made = []
    torch._dynamo.reset()

    def count(graph, _):
        made.append(graph)
        return graph.forward

    blocks = torch.compile(lambda tokens: tower.vit.blocks[0](whole_tiles(tokens)[0]), backend=count, fullgraph=True, dynamic=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        for tokens in (94, 126, 190, 48, 64, 97):
            blocks(torch.randn(1, tokens, tower.dim))
    assert len(made) == graphs


def test_filling_compiles_into_one_graph(tower):
    """Without graph breaks, with autocast on and off."""
    compiled = torch.compile(tower, backend="eager", fullgraph=True)
    images = torch.randn(1, 3, 40, 200)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), tower(images))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(compiled(images), tower(images))


def test_everything_but_nothing_else_learns(tower):
    tower(torch.randn(1, 3, 40, 24)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())
    tower.zero_grad()
