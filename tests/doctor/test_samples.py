"""Findings of single samples that the corpus of faults does not tell apart."""

import numpy as np

from ofaseg.doctor.samples import SampleCheck
from ofaseg.vocabulary import ClassVocabulary


def test_many_foreign_values_leave_cause_and_cure_whole():
    check = SampleCheck(ClassVocabulary(("a", "b")))
    check.check_labels(np.arange(10, dtype=np.uint8).reshape(2, 5), "map.png", None)
    (item,) = check.findings
    assert item.code == "label_range" and "label value 2, 3, 4, 5, 6, ... in 8 pixels, first at y=0, x=2" in item.message
    assert item.message.endswith("255 (ignore)") and item.cure.startswith("check the number of class names")
