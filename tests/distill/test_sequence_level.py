import math

import pytest
import torch
from torch.nn import functional as F

from mlcomp.distill import sequence_student, teacher_outputs
from mlcomp.generate import output_log_probability
from mlcomp.train import train
from tests.distill.nets import equal
from tests.generate.models import END, Table, by_hand, every_output, filled

LENGTH = 3
RUN = {"epochs": 1, "lr": 1e-3, "progress": False, "optimizer": torch.optim.SGD}
PROMPTS = torch.tensor([[0, 1], [2, 2], [1, 0], [1, 1]])
REFERENCES = torch.tensor([[1, END, 0], [0, 2, 1], [END, 1, 1], [2, 2, END]])
OUTPUTS = torch.tensor([[0, END], [END, END], [2, 1], [1, END]])


def own(row):
    return row[: row.index(END) + 1] if END in row else row


def nll(model, rows):
    """Sum of −log p over the tokens of outputs, one number at a time, and the number of tokens."""
    total, tokens = 0.0, 0
    for prompt, row in zip(PROMPTS.tolist(), rows.tolist(), strict=True):
        seen = list(prompt)
        for token in own(row):
            total = total - model(torch.tensor([seen]))[0, -1].log_softmax(0)[token]
            seen.append(token)
            tokens += 1
    return total, tokens


def word(model, teacher):
    total, tokens = 0.0, 0
    for prompt, row in zip(PROMPTS.tolist(), REFERENCES.tolist(), strict=True):
        seen = list(prompt)
        for token in own(row):
            p = model(torch.tensor([seen]))[0, -1].log_softmax(0)
            with torch.no_grad():
                q = teacher(torch.tensor([seen]))[0, -1].softmax(0)
            for k in range(4):
                total = total - q[k] * p[k]
            seen.append(token)
            tokens += 1
    return total / tokens


def literal(model, kind, alpha, teacher):
    mine, count = nll(model, REFERENCES)
    if kind == "word":
        return (1 - alpha) * mine / count + alpha * word(model, teacher)
    theirs, more = nll(model, OUTPUTS)
    if alpha in (0.0, 1.0):
        return theirs / more if alpha else mine / count
    return 2 * ((1 - alpha) * mine + alpha * theirs) / (count + more)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["word", "sequence"])
def test_a_step_is_that_of_the_loss_written_out(kind, alpha):
    """One full batch: the weights move by minus the learning rate times the gradient."""
    start, teacher = Table(0), Table(1)
    kind_of = {"teacher": teacher} if kind == "word" else {"outputs": OUTPUTS}
    got = sequence_student(start, PROMPTS, REFERENCES, end=END, alpha=alpha, batch_size=8, **kind_of, **RUN)
    moved = (start.table - got.model.table).detach() / RUN["lr"]
    (want,) = torch.autograd.grad(literal(start, kind, alpha, teacher), start.table)
    torch.testing.assert_close(moved, want, rtol=1e-9, atol=1e-10)
    assert equal(start, Table(0)) and equal(teacher, Table(1))


def test_without_the_teacher_it_is_training_on_references():
    start, mask = Table(0), torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
    rows, labels = torch.cat((PROMPTS, REFERENCES), 1)[:, :-1], REFERENCES.masked_fill(~mask, -100)
    options = {"epochs": 5, "lr": 1e-2, "batch_size": 2, "progress": False}
    plain = Table(0)
    train(plain, rows, labels, loss=lambda z, y: F.cross_entropy(z[:, 1:].flatten(0, 1), y.flatten()), **options)
    for kind in ({}, {"teacher": Table(1)}, {"outputs": OUTPUTS}):
        got = sequence_student(start, PROMPTS, REFERENCES, end=END, alpha=0.0, **kind, **options).model
        torch.testing.assert_close(got.table, plain.table)


def exact(model, teacher, prompt):
    """−Σ q(y) log p(y) over all outputs of a prompt."""
    return -math.fsum(math.exp(by_hand(teacher, prompt, y)) * by_hand(model, prompt, y) for y in every_output(LENGTH))


def test_word_level_on_the_teachers_own_outputs_is_the_sequence_level():
    """Averaged over all that the teacher may say, the sum over words is −Σ q(y) log p(y)."""
    student, teacher, prompt = Table(0), Table(1), PROMPTS[0].tolist()
    total = 0.0
    for y in every_output(LENGTH):
        weight, seen = math.exp(by_hand(teacher, prompt, y)), list(prompt)
        for token in y:
            with torch.no_grad():
                p, q = (m(torch.tensor([seen]))[0, -1].log_softmax(0) for m in (student, teacher))
            total -= weight * float((q.exp() * p).sum())
            seen.append(token)
    assert total == pytest.approx(exact(student, teacher, prompt), rel=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_the_teachers_outputs_are_its_modes(seed):
    teacher = Table(seed)
    got = teacher_outputs(teacher, PROMPTS, beam=60, length=LENGTH, end=END, batch_size=3)
    for prompt, row in zip(PROMPTS.tolist(), got.tolist(), strict=True):
        best = max(every_output(LENGTH), key=lambda y: by_hand(teacher, prompt, y))
        assert row == filled(best, LENGTH)


def test_a_student_of_the_modes_says_them_greedily_and_is_sure_of_them():
    teacher, start = Table(2, size=0.3), Table(5, size=0.3)
    modes = teacher_outputs(teacher, PROMPTS, beam=60, length=LENGTH, end=END)
    options = {"epochs": 40, "lr": 0.6, "batch_size": 4, "progress": False}
    mode = sequence_student(start, PROMPTS, REFERENCES, end=END, outputs=modes, alpha=1.0, **options).model
    greedy = teacher_outputs(mode, PROMPTS, beam=1, length=LENGTH, end=END)
    assert torch.equal(greedy, modes)
    assert (output_log_probability(mode, PROMPTS, modes, end=END).exp() > 0.9).all()
    assert (output_log_probability(teacher, PROMPTS, modes, end=END).exp() < 0.5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.1}, "alpha"),
        ({"outputs": None}, "give the teacher"),
        ({"teacher": Table(1)}, "not both"),
        ({"outputs": OUTPUTS[:2]}, "one row of outputs"),
        ({"references": REFERENCES[:2]}, "one row of references"),
        ({"end": -1}, "end"),
        ({"prompts": PROMPTS[:, :0]}, "prompts"),
        ({"loss": F.mse_loss}, "loss cannot be given"),
        ({"augment": lambda x, g: x}, "augment cannot be given"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_bad_input_is_refused(change, message, as_user):
    call = {"student": Table(), "prompts": PROMPTS, "references": REFERENCES, "outputs": OUTPUTS, "end": END}
    with pytest.raises(ValueError, match=message):
        sequence_student(**call | {"alpha": 0.5} | RUN | change)
    with pytest.raises(ValueError, match="batch_size"):
        teacher_outputs(Table(), PROMPTS, beam=2, length=2, end=END, batch_size=0)
