import math

import pytest
import torch
from torch import nn

from mlcomp.deploy import open_model
from mlcomp.deploy.measure import Measure, agreement, language_perplexity, main_output, outputs_of
from tests.deploy import tiny


def literal_perplexity(logits, tokens):
    """Token by token, in float64."""
    log_p = logits.double().log_softmax(-1)
    losses = [-log_p[i, t - 1, tokens[i, t]] for i in range(len(tokens)) for t in range(1, tokens.shape[1])]
    return math.exp(float(sum(losses)) / len(losses))


@pytest.mark.parametrize("model", [lambda: open_model("byte_lm_16").model, tiny.llama])
def test_perplexity_of_models_that_return_logits_or_hold_them(model):
    model, tokens = model(), torch.randint(3, 200, (3, 20))
    with torch.no_grad():
        output = model(tokens)
    expected = literal_perplexity(getattr(output, "logits", output), tokens)
    assert language_perplexity(model, tokens.split(2)) == pytest.approx(expected, rel=1e-5)  # float32 sums


def test_agreement_is_counted_and_summed():
    a, b = [torch.randn(5, 4), torch.randn(3, 4)], [torch.randn(5, 4), torch.randn(3, 4)]
    found = agreement(a, b, classes=True)
    pairs = list(zip(torch.cat(a).tolist(), torch.cat(b).tolist(), strict=True))
    same = sum(x.index(max(x)) == y.index(max(y)) for x, y in pairs) / 8
    difference = sum((v - w) ** 2 for x, y in pairs for v, w in zip(x, y, strict=True))
    total = sum(v**2 for x, _ in pairs for v in x)
    assert found.same_class == same and found.output_error == pytest.approx(difference / total, rel=1e-6)
    assert agreement(a, a, classes=False) == type(found)(0.0, None)
    zeros = [torch.zeros(2, 2)]
    assert agreement(zeros, [torch.ones(2, 2)], classes=False).output_error == math.inf


def test_padding_does_not_count():
    model = tiny.bert()
    ids = torch.randint(3, 200, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    (output,) = outputs_of(model, [{"input_ids": ids, "attention_mask": mask}], "attention_mask")
    assert output.shape == (8, 32)
    alone = model(input_ids=ids[1:, :2]).last_hidden_state[0]
    torch.testing.assert_close(output[6:], alone.detach(), rtol=1e-4, atol=1e-5)  # float32, other sums


def test_classes_are_compared_where_outputs_are_classes():
    images = [torch.randn(4, 1, 28, 28)]
    classifier = open_model("mlp").model
    measure = Measure(classifier, images, kind="image classifier", valid=None)
    assert measure.agreement(classifier).same_class == 1.0 and measure.perplexities(classifier) is None
    encoder = Measure(nn.Linear(3, 4), [torch.randn(2, 3)], kind="text encoder", valid=None)
    assert encoder.agreement(nn.Linear(3, 4)).same_class is None
    assert str(measure.agreement(classifier)) == "the same class on 100.0% of the inputs, relative output error 0"


def test_a_model_runs_in_eval_mode_and_keeps_its_mode():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5)).train()
    first, again = (outputs_of(model, [torch.ones(1, 3)], None)[0] for _ in range(2))
    assert torch.equal(first, again) and model[1].training and not first.requires_grad


def test_what_a_model_returns():
    x = torch.ones(2)
    assert main_output((x, None)) is x
    with pytest.raises(TypeError, match="returns a str"):
        main_output("logits")
