import pytest

from ofaseg.prompts import source_token_ids


def test_layout_has_no_separators_and_ends_with_unknown():
    assert source_token_ids([9], [[10, 11], [12]], [13], 0, 2, 20, ["a b", "c"]) == [0, 9, 10, 11, 12, 13, 2]


def test_too_many_names_say_how_many_fit():
    names = [f"name{k}" for k in range(1000)]
    ids = [[4, 5]] * 1000
    with pytest.raises(ValueError, match=r"1000 class names take 2000 tokens.*the first 504 names fit \(up to 'name503'\)"):
        source_token_ids([1] * 12, ids, [3], 0, 2, 1024, names)
    assert len(source_token_ids([1] * 12, ids[:504], [3], 0, 2, 1024, names[:504])) == 1023
    assert len(source_token_ids([1] * 12, [[4]] * 1000, [3], 0, 2, 1024, names)) == 1015
