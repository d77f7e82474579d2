"""What all messages share."""

import re

import pytest

from labutils import paths
from labutils.errors import counted


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 nodes"), (1, "1 node"), (2, "2 nodes"), (1600, "1600 nodes")]
)
def test_a_number_and_its_noun_agree(number, words):
    assert counted(number, "node") == words


def test_no_message_leaves_the_plural_to_the_reader():
    """ "3 node(s)" is a machine's English."""
    doubtful = re.compile(r"(?<=[\w}] )[a-z]+\(s\)")
    for file in sorted((paths.ROOT / "labutils").rglob("*.py")):
        assert not doubtful.search(file.read_text("utf-8")), file.name
