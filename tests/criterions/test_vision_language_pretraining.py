"""The alignment losses against hand-made cases."""

import torch

from criterions.vision_language_pretraining import caption_membership, contrast_loss, presence_loss, word_scores

WORDS = torch.eye(4)
CONTENT = torch.tensor([1, 2, 3])


def test_a_word_scores_the_mean_of_its_best_three_patches():
    patches = torch.zeros(1, 5, 4)
    patches[0, :, 0] = 1.0
    patches[0, :2] = torch.tensor([0.0, 7.0, 0.0, 0.0])  # two patches of word 1, whatever their length
    scores = word_scores(patches, WORDS)
    assert torch.allclose(scores, torch.tensor([[1.0, 2 / 3, 0.0, 0.0]]))


def test_membership_ignores_padding_and_other_words():
    ids = torch.tensor([[2, 0, 1], [3, 3, 0]])
    assert caption_membership(ids, CONTENT).tolist() == [[True, True, False], [False, False, True]]


def test_contrast_is_least_for_matching_pairs():
    patches = torch.stack([WORDS[[1, 1, 1]], WORDS[[2, 2, 2]]])
    matching, swapped = torch.tensor([[1], [2]]), torch.tensor([[2], [1]])
    scale = torch.tensor(10.0)
    good = contrast_loss(patches, WORDS, matching, CONTENT, scale)
    assert good < 0.01 < 5 < contrast_loss(patches, WORDS, swapped, CONTENT, scale)


def test_presence_rewards_words_of_the_caption():
    patches = WORDS[[1, 1, 1]][None]
    scale = torch.tensor(10.0)
    good = presence_loss(patches, WORDS, torch.tensor([[1]]), CONTENT, scale)
    assert good < 0.1 < presence_loss(patches, WORDS, torch.tensor([[2]]), CONTENT, scale)
