"""The small decoder: what it has computed it need not compute again; it is byte_lm but for its sizes."""

import pytest
import torch

from mlcomp.models import byte_lm, token_decoder


def test_it_computes_what_the_byte_model_does():
    ours, theirs = token_decoder(256, 32, 4), byte_lm(32)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randint(256, (3, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-4, rtol=1e-4)  # another order of the sums


@pytest.mark.parametrize("cuts", [(1, 11), (5, 7), (4, 4, 4)])
def test_going_on_equals_starting_anew(cuts):
    net = token_decoder(12, 32, 2, seed=1).double()
    tokens = torch.randint(12, (4, 12), generator=torch.Generator().manual_seed(1))
    parts, past = [], None
    for part in tokens.split(cuts, dim=1):
        logits, past = net.extend(part, past)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), net(tokens))


def test_seeds_and_sizes():
    assert torch.equal(
        token_decoder(5, 16, 1, seed=3).embedding.weight, token_decoder(5, 16, 1, seed=3).embedding.weight
    )
    assert len(token_decoder(5, 16, 3).blocks) == 3
    for sizes in ((0, 16, 1), (5, 24, 1), (5, 16, 0)):
        with pytest.raises(ValueError, match=r"vocabulary|width|layers"):
            token_decoder(*sizes)
