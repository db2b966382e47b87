r"""MiniLLM: a student of sequences lowers KL(student ‖ teacher) on its own outputs, by policy gradient.

Notation, the paper's: x prompt, y output of T tokens with its end, p teacher, q student (in
:mod:`mlcomp.distill.sequence_level` it is the other way round); $r_t = \log p(y_t)/q(y_t)$ given what stands before,
$R_t = \sum_{t' \ge t} r_{t'}$. Then
$$ \nabla \mathrm{KL}(q \Vert p) = -E_{y \sim q} \sum_t (R_t - 1) \nabla\log q(y_t)
   = E_{y \sim q} \sum_t \big[\nabla \mathrm{KL}(q_t \Vert p_t) - R_{t+1} \nabla\log q(y_t)\big], $$
with $q_t, p_t$ the probabilities of the next token: the second form takes the mean over $y_t$ exactly (single-step
decomposition). Outputs may be drawn from $\tilde p = \alpha p + (1 - \alpha) q$ (teacher-mixed sampling), with
weights $w_t = q(y_t)/\tilde p(y_t) \le 1/(1 - \alpha)$. Length normalization divides $R_{t+1}$ by how many terms
it has.
Source: Gu, Dong, Wei, Huang 2024, arXiv:2306.08543, eqs. (2) to (7), algorithm 1.   Syllabus: 5.06
"""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mlcomp.checks import check_choice, check_codes, check_interval, check_like, check_values, check_whole
from mlcomp.context import isolated, isolated_run
from mlcomp.distill.teaching import check_same_classes
from mlcomp.distill.train_student import Taught
from mlcomp.generate.outputs import check_tokens, extends, log_probabilities, log_softmax, output_mask, sample_outputs
from mlcomp.layerwise.fit import copy_model
from mlcomp.modes import evaluating, home, keeping_modes
from mlcomp.train.loop import train

WEIGHTS = ("token", "product")


@isolated
def minillm_loss(
    student: Float[Tensor, "n length vocabulary"],
    teacher: Float[Tensor, "n length vocabulary"],
    outputs: Int64[Tensor, "n length"],
    *,
    end: int,
    mixing: float | int = 0.0,
    single_step: bool = True,
    length_normalized: bool = True,
    weights: str = "token",
) -> Float[Tensor, ""]:
    r"""Return a loss whose gradient estimates that of KL(student ‖ teacher) over sequences, the mean over outputs.

    Args:
        student: logits at each token of the outputs; the loss is differentiable in them.
        teacher: logits likewise, a constant.
        outputs: drawn from the mixture of both; what stands after the first ``end`` does not count.
        end: the token that ends an output.
        mixing: α, the teacher's share in the mixture, in [0, 1); 0: drawn from the student.
        single_step: take the mean over the token $y_t$ exactly; otherwise $-(R_t - 1)\nabla\log q(y_t)$.
        length_normalized: $R_{t+1}$ (without ``single_step`` $R_t$) is the mean of its terms, no longer the sum.
        weights: "token", $w_t$ alone, as the paper trains; "product", each term weighted by $w$ of all tokens that it
            depends on, which is unbiased and varies more.
    Returns:
        the estimate of the divergence of a whole output [nats]: its value means that, its gradient is the policy
        gradient, not the derivative of the value.
    Raises:
        ValueError: shapes that do not fit, NaN, tokens outside the vocabulary, options out of range.
    Guarantee: with ``weights="product"`` (or α = 0) and no length normalization, the mean over all outputs is the
        gradient of KL(q ‖ p), with and without ``single_step``. For outputs of one token drawn from q it is that of
        :func:`mlcomp.distill.soft_target_loss` in the reverse direction.
    Deviations: the paper's product ends at t, which leaves the rewards after t with the mixture's probabilities; and
        it divides T − t rewards by T − t − 1, which is 0 where one is left.
    """
    _check_logits(student, teacher, outputs)
    check_whole("end", end, 0, student.shape[-1] - 1)
    check_interval("mixing is the teacher's share and", mixing, "[0, 1)")
    check_choice("weights", weights, WEIGHTS)
    log_q, log_p = (log_softmax(x) for x in (student, teacher.detach()))
    mask = output_mask(outputs, end=end).to(log_q.dtype)
    own, theirs = (x.gather(-1, outputs[..., None].long())[..., 0] for x in (log_q, log_p))
    reward = (theirs - own).detach() * mask
    weight = _importance(own.detach(), theirs, mixing).where(mask > 0, 1.0)
    if weights == "product":
        upto = weight.cumprod(1)  # of all tokens to t
        before = torch.cat((torch.ones_like(upto[:, :1]), upto[:, :-1]), 1)  # of those before t
        to_go = _sums_from_here(upto * reward)
        later = to_go - upto * reward
    else:
        upto = before = weight
        to_go = weight * _sums_from_here(reward)
        later = to_go - weight * reward
    if length_normalized:
        count = _sums_from_here(mask)
        to_go, later = to_go / count.clamp(min=1), later / (count - 1).clamp(min=1)
    divergence = before * (log_q.exp() * (log_q - log_p)).sum(-1)  # of the next token's probabilities
    surrogate = divergence - later * own if single_step else (upto - to_go) * own
    gradient, value = ((x * mask).sum(1).mean() for x in (surrogate, divergence.detach()))
    return gradient - gradient.detach() + value


class TeacherMixed(nn.Module):
    """The model whose next token is the teacher's with probability α, the student's otherwise; returns log p̃.

    Where both can go on from what they have computed (``extend``), it can, too.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, mixing: float) -> None:
        super().__init__()
        check_interval("mixing is the teacher's share and", mixing, "[0, 1]")
        shares = {student: 1 - mixing, teacher: mixing}
        self.heard = nn.ModuleList(model for model, share in shares.items() if share > 0)
        self.log_shares = [math.log(share) for share in shares.values() if share > 0]
        if all(extends(model) for model in self.heard):
            self.extend = self._extend

    def forward(self, tokens: Int64[Tensor, "n length"]) -> Float[Tensor, "n length vocabulary"]:
        """Return the logarithms of the probabilities of the token after each position."""
        return self._mixed([log_probabilities(model, tokens) for model in self.heard])

    def _extend(self, tokens: Tensor, past: list[Any] | None) -> tuple[Tensor, list[Any]]:
        """Return those after the new tokens, and what both models keep."""
        before = [None] * len(self.heard) if past is None else past
        models: list[Any] = list(self.heard)
        logits, kept = zip(*(m.extend(tokens, one) for m, one in zip(models, before, strict=True)), strict=True)
        return self._mixed([log_softmax(x) for x in logits]), list(kept)

    def _mixed(self, parts: list[Tensor]) -> Tensor:
        weighted = [x + log_share for x, log_share in zip(parts, self.log_shares, strict=True)]
        return weighted[0] if len(weighted) == 1 else torch.logaddexp(*weighted)


@isolated_run
def minillm(
    student: nn.Module,
    teacher: nn.Module,
    prompts: Int64[Tensor, "n prompt"],
    *,
    length: int,
    end: int,
    mixing: float | int = 0.2,
    single_step: bool = True,
    length_normalized: bool = True,
    weights: str = "token",
    epochs: int,
    lr: float,
    **options: Any,
) -> Taught:
    """Train a copy of ``student`` on what it says itself, as the teacher judges it.

    In each step it draws one output for each prompt of the batch, from itself mixed with the teacher, and steps along
    the gradient of :func:`minillm_loss`.

    Args:
        student: ``student(tokens)``, or its ``.logits``, is (n, length, vocabulary); it should write well enough
            already to get anywhere near the teacher's outputs. Not modified.
        teacher: of the same vocabulary; not modified, in eval mode.
        prompts: of one length.
        length: most tokens of an output, the end included.
        end, mixing, single_step, length_normalized, weights: as for :func:`minillm_loss`.
        epochs, lr, options: as for :func:`mlcomp.train.train`, but ``loss``, ``augment`` and ``checkpoint``.
    Returns:
        the student and its history, the divergence of an output [nats].
    Raises:
        ValueError: before any step: what ``minillm_loss`` and ``train`` refuse, models of two vocabularies.
    Deviations: each draw serves one step, so the paper's clipping of old draws has nothing to do; no loss of language
        modelling on other text is added.
    Cost: a step runs both models ``length`` times to draw, over whole rows unless they have ``extend``, and once more
        to learn; without mixing only the student draws.
    """
    if taken := sorted({"loss", "augment", "checkpoint"} & set(options)):
        raise ValueError(f"{', '.join(taken)} cannot be given: the method has taken it")
    check_tokens("prompts", prompts)
    check_whole("length", length, 1)
    estimate = partial(
        minillm_loss,
        end=end,
        mixing=mixing,
        single_step=single_step,
        length_normalized=length_normalized,
        weights=weights,
    )
    result = copy_model(student)
    with keeping_modes(teacher):
        teacher.eval()
        rollout = _Rollout(result, teacher, length, end, mixing)
        with evaluating(result):  # one prompt shows what does not fit
            estimate(*rollout(prompts[:1].to(home(result))))

        def loss(seen: Any, _: Tensor) -> Tensor:
            return estimate(*seen)

        nothing = torch.zeros(len(prompts), dtype=torch.int64, device="cpu")
        history = train(rollout, prompts, nothing, epochs=epochs, lr=lr, loss=loss, **options)
    return Taught(result, history)


class _Rollout(nn.Module):
    """The student, which draws an output for each prompt and reads it again; the teacher is none of its modules."""

    def __init__(self, student: nn.Module, teacher: nn.Module, length: int, end: int, mixing: float) -> None:
        super().__init__()
        self.student, self.others = student, (teacher, TeacherMixed(student, teacher, mixing))
        self.length, self.end = length, end

    def forward(self, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the student's and the teacher's log-probabilities at the outputs' tokens, and the outputs."""
        teacher, mixed = self.others
        seed = int(torch.randint(2**31, (), device="cpu"))  # the training loop has seeded the global generator
        outputs = sample_outputs(mixed, prompts, length=self.length, end=self.end, seed=seed)
        rows, first = torch.cat((prompts, outputs), 1)[:, :-1], prompts.shape[1] - 1
        own = log_probabilities(self.student, rows)[:, first:]
        with torch.no_grad():
            theirs = log_probabilities(teacher, rows)[:, first:]
        check_same_classes(own, theirs)
        return own, theirs, outputs


def _importance(own: Tensor, theirs: Tensor, mixing: float) -> Tensor:
    """Return q/p̃ of the tokens, from their logarithms of q and p."""
    return 1 / (mixing * (theirs - own).exp() + 1 - mixing) if mixing > 0 else torch.ones_like(own)


def _sums_from_here(x: Tensor) -> Tensor:
    """Return the sum of x from each position to the end of its row."""
    return x.flip(1).cumsum(1).flip(1)


def _check_logits(student: Tensor, teacher: Tensor, outputs: Tensor) -> None:
    """Raise unless both are logits of one shape, with a token of the outputs at each position."""
    check_values("student", student)
    if student.ndim != 3 or not student.numel():
        raise ValueError(f"student must be (n, length, vocabulary), none of them 0, got {tuple(student.shape)}")
    check_like("teacher", teacher, student.shape, "the student's logits")
    check_values("teacher", teacher)
    check_codes("outputs", outputs, student.shape[-1] - 1)
    if outputs.shape != student.shape[:-1]:
        raise ValueError(f"outputs must be {tuple(student.shape[:-1])} like the logits, got {tuple(outputs.shape)}")
