import hashlib

import pytest
import torch

from mlcomp.data import reference_bytes


def test_the_text_is_the_committed_one():
    text = bytes(reference_bytes().tolist())
    assert len(text) == 65_536
    assert hashlib.sha256(text).hexdigest() == "e30767357f00fa866762c6fbf8f9460d5a23a57a4bcb0b308c9d0748ad49f207"
    assert text.decode().count("statement") > 20  # prose of the language reference
    assert torch.equal(reference_bytes(100), reference_bytes()[:100])


def test_bad_count(as_user):
    for count in (0, 65_537, 1.5, True):
        with pytest.raises(ValueError, match="count must be"):
            reference_bytes(count)
