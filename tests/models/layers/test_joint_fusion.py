"""The joint transformer against its definition written out, and the options of training."""

import pytest
import torch

from ofaseg.models.layers.joint_fusion import JointFusion


def build(**options) -> JointFusion:
    torch.manual_seed(2)
    return JointFusion(12, 10, width=16, depth=2, heads=4, **options).eval()


def inputs():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 6, 12, generator=generator), torch.randn(2, 3, 10, generator=generator)


def written_out(fusion, patches, text):
    """Section 2.3 of the digest, one sample, one head and one token at a time."""
    visual = fusion.visual_proj(patches)
    tokens = torch.cat([visual, fusion.text_proj(text) + fusion.cls_emb[0]])
    for block in fusion.blocks:
        normed, mixed = block.norm1(tokens), torch.zeros_like(tokens)
        for head in range(4):
            part = slice(head * 4, head * 4 + 4)
            q, k, v = (
                normed @ block.attn.qkv.weight[i * 16 : i * 16 + 16][part].T + block.attn.qkv.bias[i * 16 : i * 16 + 16][part]
                for i in range(3)
            )
            for i in range(len(tokens)):
                mixed[i, part] = ((k @ q[i]) / 2).softmax(0) @ v
        tokens = tokens + mixed @ block.attn.proj.weight.T + block.attn.proj.bias
        hidden = block.mlp.fc1(block.norm2(tokens))
        tokens = tokens + block.mlp.fc2(0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))
    tokens = fusion.norm(tokens)
    return tokens[: len(patches)] @ fusion.proj_patch, tokens[len(patches) :] @ fusion.proj_classes


@torch.no_grad()
def test_the_definition():
    fusion = build()
    for part in fusion.parameters():
        part += 0.1 * torch.randn_like(part)
    patches, text = inputs()
    found = fusion(patches, text)
    assert found[0].shape == (2, 6, 16) and found[1].shape == (2, 3, 16)
    for i in range(2):
        for ours, expected in zip(found, written_out(fusion, patches[i], text[i])):
            torch.testing.assert_close(ours[i], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_class_list_for_all_photos():
    fusion = build()
    patches, text = inputs()
    for ours, expected in zip(fusion(patches, text[0]), fusion(patches, text[:1].expand(2, -1, -1))):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_dropping_is_for_training_and_grows_with_depth():
    patches, text = inputs()
    fusion = build(drop_path=1 - 1e-9, dropout=0.0)
    assert [block.drop_path for block in fusion.blocks] == [0.0, 1 - 1e-9]
    whole = fusion(patches, text)
    fusion.train()
    dropped = fusion(patches, text)
    assert not torch.allclose(dropped[0], whole[0])
    shallow = build()
    shallow.blocks = shallow.blocks[:1]
    torch.testing.assert_close(dropped[0], shallow(patches, text)[0], atol=1e-5, rtol=1e-5)
    wet = build(dropout=0.5)
    torch.testing.assert_close(wet(patches, text)[0], whole[0])
    assert not torch.allclose(wet.train()(patches, text)[0], whole[0])


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="16 wide cannot have 5 heads"):
        JointFusion(4, 4, width=16, heads=5)


def found_by_name(fusion, vectors) -> float:
    """Share of vectors that, as a class, are heeded in the first block by the patch of the same vector more than by any other patch."""
    block, classes = fusion.blocks[0], fusion.text_proj(vectors) + fusion.cls_emb
    q, k, _ = block.attn.qkv(block.norm1(torch.cat([fusion.visual_proj(vectors), classes]))).chunk(3, -1)
    scores = q[: len(vectors)] @ k[len(vectors) :].T
    scores = scores - scores.mean(1, keepdim=True)  # what a patch heeds in any class
    return float((scores.argmax(0) == torch.arange(len(vectors))).float().mean())


@torch.no_grad()
def test_an_aligned_start_knows_names_that_were_never_trained_on():
    torch.manual_seed(4)
    fusion, vectors = JointFusion(32, 32, width=64, depth=2, heads=4), torch.nn.functional.normalize(torch.randn(40, 32), dim=-1)
    assert found_by_name(fusion, vectors) < 0.2
    fusion.start_aligned()
    assert found_by_name(fusion, vectors) > 0.9
    with pytest.raises(ValueError, match="12 channels and texts of 10 share no space"):
        build().start_aligned()
