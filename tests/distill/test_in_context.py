"""One step against the loss written out token by token; what alpha, the text and the schedule do."""

import pytest
import torch
from torch.nn import functional as F

from mlcomp.distill import in_context_student
from mlcomp.train import train
from tests.distill.nets import equal
from tests.generate.models import Table

SEQUENCES = torch.tensor([[0, 1, 2, 3, 1], [2, 2, 0, 1, 3], [1, 0, 3, 3, 0]])
COUNTED = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 1, 0, 1], [0, 1, 0, 0, 0]]).bool()
TEXT = torch.tensor([[3, 0, 1], [1, 1, 2]])
STEP = {"epochs": 1, "lr": 1e-3, "progress": False, "optimizer": torch.optim.SGD, "batch_size": 8}


def term(model, teacher, rows, counted, alpha, temperature):
    """(1 − α) CE + α T² KL, the mean over the counted tokens, one at a time."""
    total, tokens = 0.0, 0
    for row, counts in zip(rows.tolist(), counted.tolist(), strict=True):
        for place in range(1, len(row)):
            if counts[place]:
                z = model(torch.tensor([row[:place]]))[0, -1]
                t = teacher(torch.tensor([row[:place]]))[0, -1].detach()
                q, log_p = (t / temperature).softmax(0), (z / temperature).log_softmax(0)
                soft = sum(q[k] * (q[k].log() - log_p[k]) for k in range(4))
                total = total - (1 - alpha) * z.log_softmax(0)[row[place]] + alpha * temperature**2 * soft
                tokens += 1
    return total / tokens


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("temperature", "beta"), [(1.0, None), (2.0, 0.7)])
def test_a_step_is_that_of_the_loss_written_out(alpha, temperature, beta):
    """One full batch: the weights move by minus the learning rate times the gradient."""
    start, teacher = Table(0), Table(1)
    also = {} if beta is None else {"text": TEXT, "text_weight": beta}
    run = {"alpha": alpha, "temperature": temperature} | also | STEP
    got = in_context_student(start, teacher, SEQUENCES, COUNTED, **run)
    moved = (start.table - got.model.table).detach() / STEP["lr"]
    loss = term(start, teacher, SEQUENCES, COUNTED, alpha, temperature)
    if beta is not None:
        loss = loss + beta * term(start, teacher, TEXT, torch.ones(2, 3).bool(), alpha, temperature)
    (want,) = torch.autograd.grad(loss, start.table)
    torch.testing.assert_close(moved, want, rtol=1e-9, atol=1e-10)
    assert got.history.loss[0] == pytest.approx(loss.item(), rel=1e-10)
    assert equal(start, Table(0)) and equal(teacher, Table(1))


def test_with_hard_labels_only_it_is_training_on_the_labels():
    rows, labels = SEQUENCES[:, :-1], SEQUENCES.masked_fill(~COUNTED, -100)[:, 1:]
    options = {"epochs": 2, "lr": 1e-2, "batch_size": 2, "progress": False, "seed": 3}
    plain = Table(0)
    train(plain, rows, labels, loss=lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()), **options)
    for teacher in (Table(1), Table(2)):
        for also in ({}, {"text": TEXT, "text_weight": 0}):
            got = in_context_student(Table(0), teacher, SEQUENCES, COUNTED, alpha=0, **also, **options).model
            torch.testing.assert_close(got.table, plain.table)


def test_a_share_that_changes_is_asked_before_each_step():
    asked, after = [], []

    def falling(progress):
        asked.append(progress)
        return 1 - progress

    options = {"epochs": 3, "lr": 1e-2, "batch_size": 2, "progress": False}
    also = {"text": TEXT, "after_step": after.append}
    in_context_student(Table(0), Table(1), SEQUENCES, COUNTED, alpha=falling, **also, **options)
    steps = 3 * 2  # five rows in batches of two; the last one of one row is left out
    assert asked[-steps:] == pytest.approx([i / steps for i in range(steps)])
    assert after == list(range(1, steps + 1))


def test_a_constant_share_can_be_resumed(tmp_path):
    options = {"lr": 1e-2, "batch_size": 4, "progress": False, "alpha": 0.5, "text": TEXT}
    whole = in_context_student(Table(0), Table(1), SEQUENCES, COUNTED, epochs=3, **options)
    path = tmp_path / "run.pt"
    for _ in range(2):  # the second one finds everything done
        got = in_context_student(Table(0), Table(1), SEQUENCES, COUNTED, epochs=3, checkpoint=path, **options)
        assert equal(got.model, whole.model) and got.history == whole.history


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"counted": COUNTED[:2]}, "counted"),
        ({"counted": COUNTED & False}, "counted must hold a token of each"),
        ({"counted": COUNTED | True}, "never the first"),
        ({"alpha": 1.5}, "alpha is the share"),
        ({"alpha": lambda progress: 2.0}, "alpha is the share"),
        ({"alpha": lambda progress: progress, "checkpoint": "run.pt"}, "checkpoint cannot be given"),
        ({"temperature": 0}, "temperature"),
        ({"text": TEXT[:, :1]}, "at least two tokens"),
        ({"text_weight": -1}, "text_weight"),
        ({"loss": F.mse_loss}, "loss cannot be given"),
        ({"augment": lambda batch, generator: batch}, "augment cannot be given"),
    ],
)
def test_bad_input_is_refused(changed, message, as_user):
    call = {"counted": COUNTED, "alpha": 0.5} | STEP | changed
    with pytest.raises(ValueError, match=message):
        in_context_student(Table(0), Table(1), SEQUENCES, call.pop("counted"), **call)
