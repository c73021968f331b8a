"""SimSeg's nano architecture with one layer per tower, for tests that build many models."""

import contextlib
from unittest import mock

from ofaseg.models.image_encoders.vit import TIMM_SIZES
from ofaseg.models.text_encoders.bert import BERT_SIZES


@contextlib.contextmanager
def one_layer():
    """Models that are built inside have one layer per tower."""
    with mock.patch.dict(TIMM_SIZES["vit_nano_patch8"], depth=1), mock.patch.dict(BERT_SIZES["bert_nano"], num_hidden_layers=1):
        yield
