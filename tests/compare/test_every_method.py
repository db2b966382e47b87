"""A method of the reader's own: measured as all others are, and drawn among them."""

from functools import partial

import matplotlib
import pytest
import torch
from torch import nn

from mlcomp.compare import every_method, measure_method, picture_of_methods
from mlcomp.compare.subject import Subject, recall_of_neighbours
from mlcomp.data import committed_table, make_layer
from mlcomp.metrics import hessian_error
from mlcomp.prune import magnitude
from mlcomp.quant import gptq, rtn

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def subject():
    """One layer of 32×64 on real inputs; quality: agreement of the outputs."""
    weight, x = make_layer(32, 64, 300, seed=0)[:2]
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    reference = model(x.T).detach()

    def quality(candidate):
        with torch.no_grad():
            outputs = candidate(x.T)
        similarity = float(nn.functional.cosine_similarity(outputs, reference).mean())
        return similarity, recall_of_neighbours(reference, outputs)

    return Subject(model, {"0": 2 * x @ x.T}, 0.5, x.T, lambda network, batch: network(batch), ("0",), quality)


def test_a_weight_that_stays_is_half_precision_and_has_all_quality(subject):
    row = measure_method("nothing", lambda weight, hessian: weight, subject=subject)
    assert row["bits_per_weight"] == "16.0000" and float(row["similarity"]) > 0.99999 and row["size"] == "packed"
    assert float(row["recall_at_10"]) > 0.99 and row["kind"] == "own" and row["hessian_seconds"] == "0.50"


def test_the_row_says_what_the_result_says_of_itself(subject):
    weight, hessian = subject.model[0].weight.detach(), subject.hessians["0"]
    method = partial(gptq, bits=3)
    row, result = measure_method("mine", method, subject=subject), method(weight, hessian)
    assert float(row["bits_per_weight"]) == pytest.approx(8 * result.nbytes / weight.numel(), abs=1e-4)
    assert float(row["layer_error"]) == pytest.approx(hessian_error(weight, result.dequantize(), hessian), abs=1e-6)
    assert set(row) <= set(committed_table("every_method")[0])


def test_a_better_method_gets_a_better_row(subject):
    rounded = measure_method("rtn", lambda weight, hessian: rtn(weight, bits=2), subject=subject)
    helped = measure_method("gptq", partial(gptq, bits=2), subject=subject)
    assert float(helped["layer_error"]) < float(rounded["layer_error"])
    assert float(helped["similarity"]) > float(rounded["similarity"])


def test_places_of_a_pattern_are_stored_instead_of_a_mask(subject):
    def quarter(weight, hessian):
        return magnitude(weight, pattern=(2, 4)).to(weight.dtype)

    row = measure_method("2:4", quarter, pattern=(2, 4), subject=subject)
    assert row["bits_per_weight"] == "9.0000" and row["setting"] == "pattern=2:4"  # 2·(16 + 2) bits for 4


def test_model_hessians_and_generator_stay(subject):
    before, hessian = subject.model[0].weight.detach().clone(), subject.hessians["0"].clone()

    def rude(weight, hessian):
        hessian.zero_()
        return weight.mul_(torch.rand(()))

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (measure_method("rude", rude, subject=subject) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and first["layer_error"] == second["layer_error"]
    assert torch.equal(subject.model[0].weight, before) and torch.equal(subject.hessians["0"], hessian)


@pytest.mark.parametrize(
    ("method", "error", "told"),
    [
        ("gptq", Exception, "method"),  # under the tests' type checks theirs comes first
        (lambda weight, hessian: None, TypeError, "a tensor, or a result"),
        (lambda weight, hessian: weight[:, :3], ValueError, r"0: a finite weight of shape \(32, 64\) is expected"),
        (lambda weight, hessian: weight / 0, ValueError, "not finite"),
    ],
)
def test_what_is_no_method_is_told(subject, method, error, told):
    with pytest.raises(error, match=told):
        measure_method("wrong", method, subject=subject)


def test_the_picture_names_ones_own_method_and_says_when_it_is_on_the_front():
    good = {"method": "good", "kind": "own", "bits_per_weight": "1.9", "similarity": "0.9"}
    poor = {"method": "poor", "kind": "own", "bits_per_weight": "8.5", "similarity": "0.5"}
    axes = picture_of_methods([good, poor]).axes[0]
    assert {text.get_text() for text in axes.texts} == {"good, on the front", "poor"}
    drawn = sum(len(points.get_offsets()) for points in axes.collections)
    assert drawn == len(committed_table("every_method"))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [k[0] for k in every_method.KINDS.values()]
    matplotlib.pyplot.close("all")
