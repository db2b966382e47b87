import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from mlcomp.distill import cofi
from mlcomp.distill.cofi import GatedModel
from mlcomp.models import byte_lm
from mlcomp.prune import gated_size, gating, open_gates, residual_stream
from tests.prune.structured.nets import run, seeded
from tests.prune.structured.test_residual_stream import Tiny, matrices

INPUTS = torch.randint(5, (24, 6), generator=torch.Generator().manual_seed(0))
OPTIONS = {"sparsity": 0.5, "epochs": 2, "lr": 1e-3, "batch_size": 4, "progress": False}  # 12 steps


def tiny() -> nn.Module:
    return seeded(lambda: Tiny(8, 12)).float()


def test_what_is_removed_is_what_was_gated():
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    found = cofi(model, INPUTS, gate_lr=0.5, **OPTIONS)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with gating(found.whole, found.stream, found.gates):
        want = run(found.whole, INPUTS)
    torch.testing.assert_close(run(found.removed, INPUTS), want, rtol=0, atol=1e-5)  # float32
    assert matrices(found.removed) == round((1 - found.sparsity) * matrices(model)) < matrices(model)
    assert found.model is found.removed and not found.model.training
    assert any(bool(((z > 0) & (z < 1)).any()) for z in found.gates.units)  # gates below one are in the weights
    again = cofi(model, INPUTS, gate_lr=0.5, **OPTIONS)
    assert all(map(torch.equal, found.model.state_dict().values(), again.model.state_dict().values()))


def test_multipliers_climb_the_constraint_as_adam_does():
    """AdamW on λ with the gradients −(s − t) and −(s − t)², written out; no decay."""
    steps = cofi(tiny(), INPUTS, gate_lr=0.3, weight_decay=0.1, **OPTIONS).steps
    assert len(steps.loss) == 12
    gaps = [s - t for s, t in zip(steps.sparsity, steps.target, strict=True)]
    for name, power in (("linear", 1), ("quadratic", 2)):
        multiplier = mean = square = 0.0
        for n, gap in enumerate(gaps, 1):
            assert getattr(steps, name)[n - 1] == pytest.approx(multiplier, abs=1e-4)
            gradient = -(gap**power)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            multiplier -= 0.3 * mean / (1 - 0.9**n) / (math.sqrt(square / (1 - 0.999**n)) + 1e-8)
    assert steps.linear[1] == pytest.approx(-0.3 * math.copysign(1, -gaps[0]), rel=1e-4)


def test_the_target_rises_and_stays():
    steps = cofi(tiny(), INPUTS, warmup=0.25, **OPTIONS).steps
    assert steps.target == pytest.approx([0.5 * min(1, n / 3) for n in range(1, 13)])
    assert cofi(tiny(), INPUTS, warmup=0.0, **OPTIONS).steps.target == 12 * [0.5]


def test_the_sparsity_of_the_start_is_the_formula_of_the_paper():
    """1 − p³ where all gates have one probability p: layer, unit and dimension of each weight."""
    for start in (0.0, 3.0):
        p = 1 / (1 + math.exp(-start - 2 / 3 * math.log(11)))
        steps = cofi(tiny(), INPUTS, log_alpha=start, **OPTIONS | {"epochs": 1}).steps
        assert steps.sparsity[0] == pytest.approx(1 - p**3, abs=1e-6)
        steps = cofi(tiny(), INPUTS, log_alpha=start, levels=["units"], **OPTIONS | {"epochs": 1}).steps
        assert steps.sparsity[0] == pytest.approx(1 - p, abs=1e-6)


@pytest.mark.slow
def test_the_loss_pushes_expected_sparsity_to_its_target():
    """With time enough it comes back from beyond it: the mean of the last 30 steps is near."""
    steps = cofi(tiny(), INPUTS, gate_lr=0.3, **OPTIONS | {"epochs": 25}).steps
    assert max(steps.sparsity) > 0.6 and sum(steps.sparsity[-30:]) / 30 == pytest.approx(0.5, abs=0.03)


def test_the_gradient_of_the_sparsity_is_a_finite_difference():
    model = tiny()
    gated = GatedModel(model, residual_stream(model, INPUTS[:1]), ("layers", "units", "dimensions"), 0.5).double()
    gated.sparsity().backward()
    for i in (0, 3, 15, 30):  # a layer, a dimension, a unit of each layer
        values = []
        for sign in (1, -1):
            gated.log_alpha.data[i] += sign * 1e-4
            values.append(gated.sparsity().detach())
            gated.log_alpha.data[i] -= sign * 1e-4
        want = (values[0] - values[1]) / 2e-4
        torch.testing.assert_close(gated.log_alpha.grad[i], want, rtol=1e-6, atol=0)  # the step squared


def test_gates_are_drawn_in_training_and_fixed_in_eval_mode():
    model = tiny()
    gated = GatedModel(model, residual_stream(model, INPUTS[:1]), ("units",), 0.0)
    with torch.no_grad():
        gated.train()
        assert not torch.equal(gated(INPUTS), gated(INPUTS))
        gated.eval()
        assert torch.equal(gated(INPUTS), gated(INPUTS))
    assert bool((gated.decided().dimensions == 1).all())  # a level without gates
    gated.log_alpha.data[:2] = torch.tensor([-2.0, -1.0])  # 0.40 and 0.65 open: each sublayer by itself
    gated.levels = ("layers",)
    assert (gated.decided().layers > 0).tolist() == [False, True]


def test_training_goes_on_after_the_removal_and_hooks_and_hints_are_taken():
    calls = []
    options = OPTIONS | {"epochs": 2, "hints": {"down1": "down1"}, "hint_weight": 0.5}
    found = cofi(tiny(), INPUTS, finetune_epochs=2, before_step=lambda n, optimizer: calls.append(n), **options)
    assert calls == [*range(1, 13), *range(1, 13)]
    assert not torch.equal(found.model.head.weight, found.removed.head.weight)
    assert matrices(found.model) == matrices(found.removed)


@pytest.mark.slow
def test_a_language_model_loses_what_the_formula_says():
    model = byte_lm(32)
    inputs = torch.randint(32, 127, (16, 32), generator=torch.Generator().manual_seed(0))
    found = cofi(model, inputs, sparsity=0.3, epochs=10, lr=1e-3, gate_lr=0.3, batch_size=8, progress=False)
    assert matrices(found.removed) == round((1 - found.sparsity) * 48 * 32**2)
    with gating(found.whole, found.stream, found.gates):
        torch.testing.assert_close(run(found.removed, inputs), run(found.whole, inputs), rtol=0, atol=1e-3)


class Fixed(Tiny):
    """Its forward counts on the size that it was made with."""

    def forward(self, tokens):
        return super().forward(tokens) + 0 * self.embedding(tokens).view(*tokens.shape, 8).sum()


def test_bad_input(as_user):
    call = partial(cofi, tiny(), INPUTS)
    with pytest.raises(ValueError, match="ByteLM does not run without some of its parts"):  # half of its only head
        cofi(byte_lm(16), INPUTS, **OPTIONS)
    for bad, message in (
        ({"sparsity": 1.0}, "sparsity is the share"),
        ({"warmup": 1.5}, "warmup is a share"),
        ({"gate_lr": 0.0}, "gate_lr must be positive"),
        ({"log_alpha": math.nan}, "log_alpha must lie"),
        ({"levels": ["heads"]}, "levels must be some of layers, units, dimensions"),
        ({"levels": []}, "levels must be some of"),
        ({"finetune_epochs": -1}, "finetune_epochs must be a whole number"),
        ({"temperature": 0.0}, "temperature must lie"),
        ({"checkpoint": "file"}, "checkpoint is taken"),
        ({"hints": {"nothing": "down1"}}, "has no layer 'model.nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**OPTIONS | bad)
    with pytest.raises(ValueError, match="no sample"):
        cofi(tiny(), INPUTS[:0], **OPTIONS)
    with pytest.raises(ValueError, match="is a LayerNorm"):
        cofi(seeded(lambda: Tiny(8, 4, norm=nn.LayerNorm)).float(), INPUTS, **OPTIONS)
    with pytest.raises(ValueError, match="does not run without some of its parts"):
        cofi(seeded(lambda: Fixed(8, 12)).float(), INPUTS, **OPTIONS)
    with pytest.raises(ValueError, match="is not what it is with these at zero"):
        cofi(seeded(lambda: Tiny(8, 12, norm=nn.RMSNorm)).float(), INPUTS, **OPTIONS)  # its ε has no number
    assert (
        float(gated_size(residual_stream(tiny(), INPUTS[:1]), open_gates(residual_stream(tiny(), INPUTS[:1])))) == 384
    )
