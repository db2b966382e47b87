r"""Self-consistency: sample several rationales for a question, and let their answers vote.

Notation: $p_k$ the probability that one sample gives answer k; of n samples, the answer with most votes wins.
Voting takes the mode of p: it lifts an accuracy $p_{right}$ only where the right answer is the likeliest one, and
lowers it where another is likelier.
Source: Wang et al. 2023, arXiv:2203.11171, section 2; Li et al. 2023, arXiv:2306.14050 (SCoTD: samples that a student
learns from).   Syllabus: 5.08, 5.09
"""

import math
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mlcomp.checks import check_codes, check_finite, check_interval, check_tensor, check_whole
from mlcomp.context import isolated, isolated_run
from mlcomp.generate.outputs import check_tokens, sample_outputs
from mlcomp.modes import evaluating, home
from mlcomp.workers import Map, Sent, check_map, mapped


@isolated_run
def sample_rationales(
    model: nn.Module,
    prompts: Int64[Tensor, "n prompt"],
    *,
    samples: int,
    length: int,
    end: int,
    temperature: float | int = 1.0,
    seed: int = 0,
    map: Map = map,
) -> Int64[Tensor, "samples n length"]:
    """Draw several outputs for each prompt; every module's mode is kept.

    Args:
        model, prompts, length, end, temperature: as in :func:`mlcomp.generate.sample_outputs`.
        samples: outputs of each prompt, at least 1.
        seed: sample i of all prompts is what :func:`mlcomp.generate.sample_outputs` draws with ``seed + i``.
        map: by which the samples are drawn: a callable like the built-in, such as the ``map`` of a pool of processes
            (:mod:`mlcomp.workers`). Each sample takes the model with it.
    Returns:
        outputs, filled with ``end`` behind their end.
    Raises:
        ValueError: what sample_outputs refuses, no samples, a ``map`` that does not work.
    Guarantee: the same for every ``map`` whose workers have as many threads of torch as this process.
    Cost: that of ``samples`` calls of sample_outputs.
    """
    check_tokens("prompts", prompts)
    check_whole("samples", samples, 1)
    check_whole("length", length, 1)
    check_whole("end", end, 0)
    check_interval("temperature", temperature, "[0, inf)")
    check_whole("seed", seed, 0)
    check_map(map, type(model))
    sent = Sent((model, prompts, {"length": length, "end": end, "temperature": temperature}))
    seeds = {f"sample {i}": seed + i for i in range(samples)}
    with evaluating(model):  # so that threads, which all have this one model, leave its modes alone
        return torch.tensor(np.stack(list(mapped(partial(_sample, sent), seeds, map))), device=home(model))


def _sample(sent: Sent, seed: int) -> np.ndarray:
    model, prompts, options = sent.value
    return sample_outputs(model, prompts, seed=seed, **options).cpu().numpy()


@isolated
def majority_vote(answers: Int64[Tensor, "n questions"], *, seed: int = 0) -> Int64[Tensor, " questions"]:
    """Return the most frequent answer to each question.

    Args:
        answers: (n, questions), numbers that stand for answers; −1 where a sample stated none: no vote.
        seed: of the choice among answers with equally many votes.
    Returns:
        (questions,); −1 where no sample stated an answer.
    Raises:
        ValueError: another shape, no sample, a number below −1.
    """
    check_tensor("answers", answers)
    if answers.ndim != 2 or not answers.numel():
        raise ValueError(f"answers must be (n, questions), with at least one each, got {tuple(answers.shape)}")
    check_codes("answers + 1", answers + 1, int(answers.max()) + 1)
    check_whole("seed", seed, 0)
    votes = torch.nn.functional.one_hot(answers.long() + 1).sum(0)[:, 1:]
    if votes.shape[1] == 0:
        return torch.full_like(answers[0], -1)
    generator = torch.Generator().manual_seed(seed)
    # Less than a vote, so that it decides among equals only.
    drawn = torch.rand(votes.shape, generator=generator, dtype=torch.float64)
    chosen = (votes + drawn).argmax(1)
    return torch.where(votes.sum(1) > 0, chosen, -1)


@isolated
def voting_accuracy(probabilities: Float[Tensor, " answers"], samples: int, *, right: int = 0) -> float:
    r"""Return the probability that the right answer wins the vote, ties broken by chance.

    $\sum_v P(v)\,[v_r = \max v] / |\{k: v_k = \max v\}|$ over all ways v that n votes can fall.

    Args:
        probabilities: of each answer in one sample; they add up to 1.
        samples: n.
        right: index of the right answer.
    Raises:
        ValueError: no distribution, n below 1, an index outside it.
    Cost: of the order of answers · n³ · n, exact: the counts of the other answers enter one answer at a time.
    """
    p = _distribution(probabilities)
    check_whole("samples", samples, 1)
    check_whole("right", right, 0, len(p) - 1)
    others = p[:right] + p[right + 1 :]
    total = 0.0
    for own in range(1, samples + 1):
        # ways[used][ties]: Σ Π p_k^v_k / v_k! over the answers so far, none above ``own``, ``ties`` equal to it.
        ways = [[0.0] * (len(others) + 1) for _ in range(samples - own + 1)]
        ways[0][0] = 1.0
        for share in others:
            ways = _one_more(ways, share, own)
        rest = sum(weight / (ties + 1) for ties, weight in enumerate(ways[samples - own]))
        total += p[right] ** own / math.factorial(own) * rest
    return total * math.factorial(samples)


def _one_more(ways: list[list[float]], share: float, most: int) -> list[list[float]]:
    """Return the sums with one more answer, which gets 0 to ``most`` votes."""
    after = [[0.0] * len(row) for row in ways]
    for used, row in enumerate(ways):
        for ties, weight in enumerate(row):
            if weight == 0:
                continue
            for votes in range(min(most, len(ways) - 1 - used) + 1):
                tied = ties + (votes == most)
                after[used + votes][tied] += weight * share**votes / math.factorial(votes)
    return after


def _distribution(probabilities: Tensor) -> list[float]:
    check_finite("probabilities", probabilities)
    p = probabilities.double()
    if p.ndim != 1 or not len(p) or float(p.min()) < 0 or abs(float(p.sum()) - 1) > 1e-6:
        raise ValueError(f"probabilities must be a distribution, (answers,) of sum 1, got {probabilities!r}")
    return p.tolist()
