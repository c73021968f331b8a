"""Pictures of segments and objects: colours, order, numbers, legend."""

import numpy as np
import torch

from ofaseg.evaluation.segment_pictures import _inside, instance_picture, panoptic_picture, segment_colours
from ofaseg.structures import InstanceSegmentation, PanopticSegmentation
from ofaseg.vocabulary import ClassVocabulary

VOCABULARY = ClassVocabulary(("cat", "sky"), thing=(True, False), palette=((200, 40, 40), (40, 40, 200)))
PHOTO = np.full((120, 160, 3), 90, dtype=np.uint8)


def test_colours_of_one_class_differ():
    colours = segment_colours([0, 1, 0, 0, 0, 0, 0, 1], VOCABULARY.palette)
    assert colours[0] == (200, 40, 40) and colours[1] == (40, 40, 200) and len(set(colours)) == 8
    reds = np.array([colours[k] for k in (0, 2, 3, 4, 5, 6)])
    assert all(np.abs(a.astype(int) - b).sum() > 30 for i, a in enumerate(reds) for b in reds[:i])


def panoptic():
    ids = torch.zeros(120, 160, dtype=torch.int32)
    ids[:60], ids[70:, :50], ids[70:, 60:] = 900_000, 7, 8
    entries = [(7, 0, True), (8, 0, True), (900_000, 1, False)]
    segments = [
        {"id": i, "class_id": k, "is_thing": thing, "area": int((ids == i).sum()), "box": [0, 0, 1, 1], "score": 0.9}
        for i, k, thing in entries
    ]
    return PanopticSegmentation(ids, segments)


def test_panoptic_picture():
    """Without legend it has the photo's size; segments differ in colour, what has none is dark."""
    picture = np.asarray(panoptic_picture(PHOTO, panoptic(), VOCABULARY, legend=False))
    assert picture.shape == PHOTO.shape
    sky, one, two, none = (picture[place].astype(int) for place in ((10, 10), (75, 5), (75, 65), (65, 20)))
    assert sky[2] > sky[0] + 30 and one[0] > one[2] + 30 and np.abs(one - two).sum() > 30
    assert none.max() < 60
    with_legend = panoptic_picture(PHOTO, panoptic(), VOCABULARY)
    assert with_legend.width == 480 and with_legend.height > 360  # enlarged three times, the legend below


def test_better_objects_lie_on_top():
    masks = torch.zeros(2, 120, 160, dtype=torch.bool)
    masks[0, :, :100], masks[1, :, 60:] = True, True
    pictures = []
    for scores in ((0.9, 0.3), (0.3, 0.9)):
        found = InstanceSegmentation(masks, torch.tensor([0, 1]), torch.tensor(scores), torch.zeros(2, 4))
        pictures.append(np.asarray(instance_picture(PHOTO, found, VOCABULARY, legend=False)).astype(int))
    (red, blue), place = pictures, (5, 80)
    assert red[place][0] > red[place][2] and blue[place][2] > blue[place][0]
    nothing = InstanceSegmentation(masks[:0], torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(0, 4))
    assert instance_picture(PHOTO, nothing, VOCABULARY).width == 480


def test_numbers_lie_inside():
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:18, 3:8] = mask[2:6, 3:28] = True
    x, y = _inside(mask)
    assert mask[y, x] and _inside(np.zeros((4, 4), dtype=bool)) is None
    full = np.ones((9, 9), dtype=bool)
    assert _inside(full) == (4, 4)
