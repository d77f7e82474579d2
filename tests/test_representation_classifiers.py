"""The 39 classifiers through the representation to PyTorch, bit for bit."""

import pytest
from described_networks import CLASSIFIERS, assert_equal, classifier

SOME = ("timm:convnext_atto", "timm:levit_128s")
"""With a layer scale; with attention, an index and a BatchNorm of vectors."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_some_classifiers_come_back_bit_for_bit(name):
    assert_equal(*classifier(name), n=2)


@pytest.mark.sweep
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_come_back_bit_for_bit(name):
    assert_equal(*classifier(name), n=2)
