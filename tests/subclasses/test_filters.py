import numpy as np
import pytest
import torch

from ofaseg.subclasses import filters
from ofaseg.subclasses.label_set import LabelSet


def naive_outliers(similarity, cutoff):
    """The published script's rule as loops over all ordered pairs, deletions and all."""
    count = len(similarity)
    totals = [sum(similarity[i, j] for j in range(count) if j != i) for i in range(count)]
    gone = []
    for i in range(count):
        for j in range(count):
            if i != j and similarity[i, j] <= cutoff and i not in gone and j not in gone:
                gone.append(i if totals[i] < totals[j] else j)
    return gone


def random_similarity(rng, count, width=4, steps=0):
    vectors = rng.normal(size=(count, width)) + 0.7
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    return np.round(similarity * steps) / steps if steps else similarity


@pytest.mark.parametrize("steps", [0, 4])  # few steps: totals are equal here and there, and sums of them exact
@pytest.mark.parametrize("cutoff", [-0.5, 0.25, 0.46, 0.8])
def test_outliers_go_as_in_the_published_loops(steps, cutoff):
    rng = np.random.default_rng(int(100 * cutoff) + 50 + steps)
    sizes = set()
    for count in (1, 2, 7, 30, 45):
        similarity = random_similarity(rng, count, steps=steps)
        gone = filters.outliers(similarity, cutoff)
        assert list(gone) == naive_outliers(similarity, cutoff)
        assert all(similarity[k, other] <= cutoff for k, other in gone.items())
        sizes.add(len(gone))
    assert cutoff == -0.5 or len(sizes) > 2


def test_outliers_within_classes_are_those_of_each_class_alone():
    rng = np.random.default_rng(3)
    similarity = random_similarity(rng, 24)
    groups = rng.permutation([f"class {k % 3}" for k in range(24)])
    expected = set()
    for group in set(groups):
        members = np.flatnonzero(groups == group)
        expected |= {int(members[k]) for k in naive_outliers(similarity[np.ix_(members, members)], 0.5)}
    assert set(filters.outliers(similarity, 0.5, groups)) == expected and expected


def encoder(vectors, calls=None):
    """A text encoder with a table of vectors; unit ones come out."""
    table = {name: np.asarray(vector, dtype=float) for name, vector in vectors.items()}

    def encode(names):
        if calls is not None:
            calls.append(list(names))
        return np.stack([table[name] / np.linalg.norm(table[name]) for name in names])

    return encode


VECTORS = {
    "cat": (1, 0, 0),
    "dog": (0, 1, 0),
    "tabby": (0.95, 0.1, 0.1),
    "tabby kitten": (0.95, 0.1, 0.12),
    "dogfish": (0.3, 0.05, 0.9),
    "dog-like cat": (0.3, 0.95, 0),
    "pug": (0.1, 0.9, 0.2),
    "hound": (0.01, 1, 0),
    "doggy": (0, 1, 0.01),
}
ANIMALS = LabelSet({"cat": ("tabby", "tabby kitten", "dogfish", "dog-like cat"), "dog": ("pug", "hound")})


def test_outliers_of_a_label_set():
    left, removals = filters.filter_outliers(ANIMALS, [(encoder(VECTORS), 1.0)], 0.2)
    names, _ = ANIMALS.flat
    matrix = filters.similarities([(encoder(VECTORS), 1.0)], names)
    expected = [names[k] for k in naive_outliers(matrix, 0.2)]
    assert sorted(removal.name for removal in removals) == sorted(expected) and expected
    assert [name for name in names if name not in expected] == left.flat[0]
    assert all("is at most 0.2" in removal.reason and removal.filter == "outlier" for removal in removals)


def test_near_duplicates_lose_against_the_earlier_name():
    left, removals = filters.filter_near_duplicates(ANIMALS, [(encoder(VECTORS), 1.0)], 0.999)
    assert left == {"cat": ("tabby", "dogfish", "dog-like cat"), "dog": ("pug", "hound")}
    assert str(removals[0]).startswith("cat: 'tabby kitten' removed [near_duplicate]: similarity 1.000 to 'tabby' is at least")
    same = LabelSet({"a": ("pug",), "b": ("pug",)})  # of different classes: not this filter's business
    assert filters.filter_near_duplicates(same, [(encoder(VECTORS), 1.0)], 0.5)[0] == same


def test_a_removed_near_duplicate_removes_nothing():
    """b is near a, c is near b but not near a: c stays."""
    chain = {"a": (1, 0), "b": (0.95, 0.31), "c": (0.81, 0.59)}
    left, _ = filters.filter_near_duplicates(LabelSet({"x": ("a", "b", "c")}), [(encoder(chain), 1.0)], 0.93)
    assert left == {"x": ("a", "c")}


def test_names_of_other_classes_go_and_those_of_the_own_class_stay():
    """Own and other are told by class, not by the position in two lists of different lengths."""
    left, removals = filters.filter_other_superclass(ANIMALS, [(encoder(VECTORS), 1.0)], 0.95)
    assert left == {"cat": ("tabby", "tabby kitten", "dogfish"), "dog": ("pug", "hound")}
    assert [removal.to_json()["name"] for removal in removals] == ["dog-like cat"]
    assert "to the class 'dog' is at least 0.95" in removals[0].reason
    reordered = LabelSet({"dog": ("pug", "hound"), "cat": ("dog-like cat", "dogfish", "tabby kitten", "tabby")})
    again, _ = filters.filter_other_superclass(reordered, [(encoder(VECTORS), 1.0)], 0.95)
    assert {name: set(names) for name, names in again.items()} == {name: set(names) for name, names in left.items()}


def test_a_class_never_ends_up_empty():
    wrong = LabelSet({"cat": ("hound", "pug", "doggy"), "dog": ("doggy",)})
    left, removals = filters.filter_other_superclass(wrong, [(encoder(VECTORS), 1.0)], 0.5)
    assert left == {"cat": ("pug",), "dog": ("doggy",)}  # pug is least of a dog
    assert [(removal.name, removal.kept) for removal in removals] == [("hound", False), ("pug", True), ("doggy", False)]
    assert "kept, the best of its class" in str(removals[1])
    left, removals = filters.filter_outliers(LabelSet({"cat": ("tabby", "dogfish"), "dog": ("pug",)}), [(encoder(VECTORS), 1.0)], 0.99)
    assert [len(names) for names in left.values()] == [1, 1] and sum(removal.kept for removal in removals) >= 1
    kept = [removal for removal in removals if removal.kept and removal.class_name == "cat"]
    assert not kept or kept[0].name == "tabby"


def test_keep_first():
    left, removals = filters.keep_first(ANIMALS, 3)
    assert left == {"cat": ("tabby", "tabby kitten", "dogfish"), "dog": ("pug", "hound")} and removals[0].name == "dog-like cat"
    with pytest.raises(ValueError, match="1 or more"):
        filters.keep_first(ANIMALS, 0)


def test_weights_of_several_encoders():
    """The published mixture is (m + 3 c) / 4."""
    other = {name: np.roll(vector, 1) + np.array([0.1, 0, 0.4]) for name, vector in VECTORS.items()}
    rows, columns = ["pug", "tabby"], ["cat", "dog", "pug"]
    mixed = filters.similarities([(encoder(VECTORS), 1), (encoder(other), 3)], rows, columns)
    first, second = (filters.similarities([(encoder(table), 1)], rows, columns) for table in (VECTORS, other))
    np.testing.assert_allclose(mixed, (first + 3 * second) / 4, atol=1e-12)
    assert mixed.shape == (2, 3) and abs(first - second).max() > 0.1


def test_each_distinct_name_is_encoded_once():
    calls: list[list[str]] = []
    vectors = filters.embed(encoder(VECTORS, calls), ["pug", "cat", "pug"])
    assert calls == [["pug", "cat"]] and (vectors[0] == vectors[2]).all() and vectors.shape == (3, 3)


def test_torch_and_numpy_encoders_agree():
    def torch_encode(names):
        return torch.from_numpy(encoder(VECTORS)(names)).half().requires_grad_()

    expected = filters.embed(encoder(VECTORS), list(VECTORS))
    np.testing.assert_allclose(filters.embed(torch_encode, list(VECTORS)), expected, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(filters.embed(torch_encode, list(VECTORS)), axis=1), 1, atol=1e-12)


@pytest.mark.parametrize(
    "made, message",
    [
        (np.ones((1, 3)), r"made \(1, 3\) of 2 names"),
        (np.ones(2), r"made \(2,\) of 2 names"),
        (np.array([[1.0, 0.0], [0.0, 0.0]]), "zero or not finite of 'dog'"),
        (np.array([[np.nan, 0.0], [0.0, 1.0]]), "zero or not finite of 'cat'"),
    ],
)
def test_encoders_that_make_no_vectors(made, message):
    with pytest.raises(ValueError, match=message):
        filters.embed(lambda names: made, ["cat", "dog"])


def test_weights_have_to_be_positive():
    for encoders in ([], [(encoder(VECTORS), 0.0)]):
        with pytest.raises(ValueError, match="at least one text encoder, and weights above 0"):
            filters.similarities(encoders, ["cat"])


def test_doubtful_names():
    label_set = LabelSet({"cat": ("Tabby", "dog", "tabby"), "dog": ("pug", "tabby "), "cow": ("cow",)})
    assert filters.doubtful_names(label_set) == ["'tabby' stands 3 times, in cat, dog", "the class 'dog' is a subclass of 'cat'"]
