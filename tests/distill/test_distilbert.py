import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.distill import distilbert, distilbert_loss, keep_layers, soft_target_loss, spread_layers
from mlcomp.models import byte_lm
from tests.distill.nets import equal, seeded

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounding


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given():
    """Logits and states of student and teacher for 2 × 3 positions, one without label, one that is padding."""
    labels = torch.tensor([[1, 0, 3], [2, -100, 1]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    states = {"student_hidden": drawn(2, 3, 5, seed=2), "teacher_hidden": drawn(2, 3, 5, seed=3)}
    return drawn(2, 3, 4), drawn(2, 3, 4, seed=1), labels, mask, states


def by_hand(s, t, labels, mask, states, soft, supervised, cosine, temperature):
    """The three losses, one position at a time."""
    divergence, cosines, entropy = [], [], []
    for i in range(2):
        for j in range(3):
            if mask[i, j]:
                p, q = ([math.exp(float(x) / temperature) for x in z[i, j]] for z in (s, t))
                p, q = ([x / sum(row) for x in row] for row in (p, q))
                divergence.append(temperature**2 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)))
                u, v = ([float(x) for x in states[name][i, j]] for name in ("student_hidden", "teacher_hidden"))
                dot = sum(a * b for a, b in zip(u, v, strict=True))
                cosines.append(1 - dot / math.hypot(*u) / math.hypot(*v))
            if labels[i, j] >= 0:
                entropy.append(-float(s[i, j, labels[i, j]]) + math.log(sum(math.exp(float(x)) for x in s[i, j])))
    means = [sum(x) / len(x) for x in (divergence, entropy, cosines)]
    return soft * means[0] + supervised * means[1] + cosine * means[2]


@pytest.mark.parametrize(
    "weights", [(5.0, 2.0, 1.0, 2.0), (0.0, 2.0, 1.0, 2.0), (1.0, 0.0, 0.0, 3.0), (0.3, 0.0, 7.0, 1.0)]
)
def test_it_is_the_three_losses_written_out(weights):
    s, t, labels, mask, states = given()
    names = ("soft", "supervised", "cosine", "temperature")
    got = distilbert_loss(s, t, labels, mask=mask, **states, **dict(zip(names, weights, strict=True)))
    assert float(got) == pytest.approx(by_hand(s, t, labels, mask, states, *weights), rel=1e-10)
    if weights == (5.0, 2.0, 1.0, 2.0):
        assert torch.equal(got, distilbert_loss(s, t, labels, mask=mask, **states))  # the defaults


def test_the_gradients():
    """Of the cosine: −(unit teacher − cos · unit student) / |student|, a mean over positions; none to the teacher."""
    s, t, labels, _, states = given()
    h, g = (states[name].requires_grad_() for name in ("student_hidden", "teacher_hidden"))
    t.requires_grad_(), s.requires_grad_()
    distilbert_loss(s, t, labels, **states).backward()
    assert t.grad is None and g.grad is None and s.grad is not None
    u, v = (x.detach() / x.detach().norm(dim=-1, keepdim=True) for x in (h, g))
    cos = (u * v).sum(-1, keepdim=True)
    torch.testing.assert_close(h.grad, -(v - cos * u) / h.detach().norm(dim=-1, keepdim=True) / 6, **EXACT)


def test_the_size_of_the_states_and_what_is_masked_have_no_influence():
    s, t, labels, mask, states = given()
    want = distilbert_loss(s, t, labels, mask=mask, **states)
    longer = {**states, "student_hidden": 7 * states["student_hidden"]}
    torch.testing.assert_close(distilbert_loss(s, t, labels, mask=mask, **longer), want, **EXACT)
    other = copy.deepcopy(states)
    other["student_hidden"][1, 2] += 1
    changed = t.clone()
    changed[1, 2] += drawn(4, seed=9)
    torch.testing.assert_close(distilbert_loss(s, changed, labels, mask=mask, **other), want, **EXACT)
    assert abs(float(distilbert_loss(s, t, labels, **states) - want)) > 1e-3
    same = {"student_hidden": states["teacher_hidden"], "teacher_hidden": states["teacher_hidden"]}
    assert abs(float(distilbert_loss(t, t, labels, supervised=0.0, **same))) < 1e-12


def test_without_labels_the_supervised_loss_is_zero_and_a_zero_state_has_cosine_zero():
    s, t, labels, _, states = given()
    none = torch.full_like(labels, -100)
    assert float(distilbert_loss(s, t, none, soft=0.0, cosine=0.0, **states)) == 0.0
    zero = {**states, "student_hidden": torch.zeros_like(states["student_hidden"])}
    assert float(distilbert_loss(s, t, none, soft=0.0, **zero)) == 1.0


def test_the_layers_of_distilbert():
    assert spread_layers(12, 6) == (0, 2, 4, 7, 9, 11)  # the authors' code
    assert spread_layers(4, 2) == (0, 3) and spread_layers(7, 1) == (0,)
    for layers in range(1, 20):
        assert spread_layers(layers, layers) == tuple(range(layers))
        for keep in range(2, layers + 1):
            chosen = spread_layers(layers, keep)
            assert chosen[0] == 0 and chosen[-1] == layers - 1 and sorted({*chosen}) == list(chosen)
            exact = [i * (layers - 1) / (keep - 1) for i in range(keep)]
            assert all(abs(a - b) <= 0.5 for a, b in zip(chosen, exact, strict=True))


def test_a_student_of_some_layers_has_their_weights_and_runs_through_them():
    teacher = byte_lm(16, pretrained=False)
    tokens = torch.arange(6).view(2, 3)
    student = keep_layers(teacher, "blocks", (0, 2))
    with torch.no_grad():
        skipped = copy.deepcopy(teacher)
        for block in (skipped.blocks[1], skipped.blocks[3]):  # a residual block that adds nothing
            block.out.weight.zero_()
            block.down.weight.zero_()
        assert torch.equal(student(tokens), skipped(tokens))
        assert equal(keep_layers(teacher, "blocks", range(4)), teacher)
    assert len(teacher.blocks) == 4 and len(student.blocks) == 2
    student.blocks[0].up.weight.data.zero_()
    assert teacher.blocks[0].up.weight.any()
    chain = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)))
    x = torch.ones(1, 3)
    assert torch.equal(keep_layers(nn.Sequential(chain), "0", (0, 2))(x), chain[2](chain[0](x)))


class Small(nn.Module):
    """Classes of positions; ``state`` is the last hidden state."""

    def __init__(self, classes=4):
        super().__init__()
        self.embedding, self.state, self.drop = nn.Embedding(8, 6), nn.Linear(6, 5), nn.Dropout(0.5)
        self.head = nn.Linear(5, classes)

    def forward(self, tokens):
        return self.head(self.state(self.drop(self.embedding(tokens))))


RUN = {"epochs": 1, "lr": 1e-2, "batch_size": 8, "progress": False, "optimizer": torch.optim.SGD}
TOKENS = torch.tensor([[1, 5, 2], [0, 7, 3]])


def test_a_step_is_that_of_the_loss():
    start, teacher = seeded(Small).eval(), seeded(Small, 1).train()
    start.drop.p = 0.0
    before = copy.deepcopy(teacher)
    _, _, labels, mask, _ = given()
    got = distilbert(start, teacher, TOKENS, labels, hidden="state", mask=mask, **RUN).model
    calm = copy.deepcopy(teacher).eval()
    own = copy.deepcopy(start)
    h, g = (m.state(m.embedding(TOKENS)) for m in (own, calm))
    states = {"student_hidden": h, "teacher_hidden": g}
    distilbert_loss(own.head(h), calm.head(g), labels, mask=mask, **states).backward()
    for name, p in own.named_parameters():
        moved = (dict(start.named_parameters())[name] - got.get_parameter(name)).detach() / RUN["lr"]
        torch.testing.assert_close(moved, p.grad, rtol=1e-4, atol=1e-5)  # a difference of float32 weights
    assert equal(teacher, before) and teacher.training and not start.training


@pytest.mark.slow
def test_one_loss_alone_reaches_its_goal():
    teacher = seeded(Small, 1).eval()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        theirs, state = teacher(tokens), teacher.state(teacher.embedding(tokens))
    labels = theirs.argmax(-1)
    options = {"hidden": "state", "epochs": 100, "lr": 0.05, "progress": False}
    start = seeded(Small)
    start.drop.p = 0.0
    none = {"soft": 0.0, "supervised": 0.0, "cosine": 0.0}
    soft, hard, near = (distilbert(start, teacher, tokens, labels, **options, **none | {k: 1.0}).model for k in none)
    with torch.no_grad():
        assert float(soft_target_loss(soft(tokens), theirs, temperature=1.0)) < 0.01
        assert float(F.cross_entropy(hard(tokens)[0], labels[0])) < 0.1
        assert float(F.cosine_similarity(near.state(near.embedding(tokens)), state, dim=-1).min()) > 0.9
    assert torch.equal(near.head.weight, start.head.weight)  # nothing asks for another


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"soft": -1.0}, "soft must lie in"),
        ({"temperature": 0.0}, "temperature"),
        ({"labels": torch.tensor([[1, 0, 4], [2, 0, 1]])}, "labels must lie in 0 … 3"),
        ({"labels": torch.zeros(2, 2, dtype=torch.long)}, "labels must be"),
        ({"mask": torch.zeros(2, 3, dtype=torch.bool)}, "at least one position"),
        ({"mask": torch.ones(2, 3)}, "mask must be a boolean"),
        ({"student_hidden": drawn(2, 5)}, "student"),
        ({"teacher": drawn(2, 3, 5)}, "teacher must be"),
    ],
)
def test_a_bad_loss_is_refused(change, message, as_user):
    s, t, labels, mask, states = given()
    call = {"student": s, "teacher": t, "labels": labels, "mask": mask, **states}
    with pytest.raises(ValueError, match=message):
        distilbert_loss(**call | change)


def test_bad_input_is_refused(as_user):
    labels, call = torch.zeros(2, 3, dtype=torch.long), {"hidden": "state", **RUN}
    small = seeded(Small)
    for change, message in (
        ({"hidden": "nothing"}, "has no layer 'nothing'"),
        ({"loss": F.mse_loss}, "loss is taken"),
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, "mask"),
    ):
        with pytest.raises(ValueError, match=message):
            distilbert(small, small, TOKENS, labels, **call | change)
    with pytest.raises(ValueError, match="teacher must be"):
        distilbert(small, seeded(lambda: Small(3)), TOKENS, labels, **call)
    with pytest.raises(ValueError, match="same length"):
        distilbert(small, small, TOKENS, labels[:1], **call)
    for layers in ((), (0, 4), (2, 1), (1, 1), (-1, 2)):
        with pytest.raises(ValueError, match="layers"):
            keep_layers(byte_lm(16, pretrained=False), "blocks", layers)
    with pytest.raises(ValueError, match="list of layers"):
        keep_layers(small, "head", (0,))
    for sizes in ((0, 1), (4, 5), (4, 0)):
        with pytest.raises(ValueError, match=r"layers|keep"):
            spread_layers(*sizes)
