"""The committed network reads labels from the context as well as the exact rule does."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mlcomp.data import committed_results
from mlcomp.data.labelled_symbols import SYMBOLS, bayes_labels, by_shots, chain_text, labelled_symbols
from mlcomp.models import in_context_teacher
from mlcomp.models.pretrained import WEIGHTS

RESULTS = committed_results("in_context_teacher")


@pytest.mark.slow
def test_it_is_right_as_often_as_the_exact_rule():
    """±0.02: 4000 sequences hold some 800 places with four shots; a share of 0.98 has a standard error of 0.005."""
    new = labelled_symbols(4000, seed=1001)
    with torch.no_grad():
        logits = in_context_teacher()(new.tokens[:, :-1])[:, 0::2, SYMBOLS:]
    rule = bayes_labels(new.tokens)
    for scores, stated in ((logits, RESULTS["accuracy"]), (rule, RESULTS["bayes"])):
        got = by_shots((scores.argmax(2) == new.own).double(), new.shots, most=4)
        assert got.tolist() == pytest.approx(stated, abs=0.003)  # the same sequences; another BLAS rounds differently
    assert all(a > b - 0.02 for a, b in zip(RESULTS["accuracy"], RESULTS["bayes"], strict=True))


def test_it_goes_by_the_symbol_and_not_by_the_place():
    """With other names for the symbols, and the labels exchanged along, the answers are exchanged along."""
    new = labelled_symbols(500, noise=0, seed=5)
    order, names = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 3, 0, 7, 1, 6, 2, 4])
    other = torch.stack((names[new.tokens[:, 0::2]], SYMBOLS + order[new.own]), 2).flatten(1)
    with torch.no_grad():
        said, also = (in_context_teacher()(t[:, :-1])[:, 0::2, SYMBOLS:].argmax(2) for t in (new.tokens, other))
    seen = new.shots > 0
    assert float((order[said] == also)[seen].double().mean()) > 0.97


def test_it_knows_the_text_of_the_chain():
    text = chain_text(500, 24, seed=3)
    with torch.no_grad():
        nll = F.cross_entropy(in_context_teacher()(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
    assert float(nll) == pytest.approx(RESULTS["text_nll"], abs=0.03)
    assert RESULTS["chain_entropy"] < RESULTS["text_nll"] < RESULTS["chain_entropy"] + 0.1


def test_the_file_is_small_and_the_model_is_its_own():
    path = WEIGHTS / "in_context_teacher.safetensors"
    assert path.stat().st_size == RESULTS["file_bytes"] < 300_000
    before = torch.get_rng_state()
    net = in_context_teacher()
    assert torch.equal(torch.get_rng_state(), before) and not net.training
    assert sum(p.numel() for p in net.parameters()) == RESULTS["parameters"]
    assert all(torch.equal(v, load_file(path)[k].to(v)) for k, v in net.state_dict().items())
    starts = [in_context_teacher(pretrained=False, seed=s).embedding.weight for s in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
