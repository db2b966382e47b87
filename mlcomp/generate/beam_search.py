r"""Beam search: the b likeliest beginnings of an output grow together, one token a step.

Notation: as in :mod:`mlcomp.generate.outputs`. A beginning that has ended keeps its place, unchanged, as long as its
score is among the best b. score = $\log p(y \mid x) / |y|^{\lambda}$, |y| the number of tokens, the end included;
λ = 0 looks for the likeliest output, the mode.
Sources: Sutskever, Vinyals, Le 2014, arXiv:1409.3215, section 3.2 (the search); Wu et al. 2016, arXiv:1609.08144,
section 7 (scores that allow for the length; their penalty is $((5 + |y|)/6)^\lambda$).   Syllabus: 4.15
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mlcomp.checks import check_interval, check_whole
from mlcomp.context import isolated_run
from mlcomp.generate.outputs import check_tokens, log_probabilities
from mlcomp.modes import evaluating, home


@dataclass(frozen=True)
class Beams:
    """Outputs of each prompt, the best score first.

    Attributes:
        tokens: (n, beam, length); behind their end filled with the end token.
        log_probability: (n, beam) [nats]; −∞ where a prompt has fewer outputs than the beam is wide.
    """

    tokens: Int64[Tensor, "n beam length"]
    log_probability: Float[Tensor, "n beam"]


@isolated_run
def search_outputs(
    model: nn.Module,
    prompts: Int64[Tensor, "n prompt"],
    *,
    beam: int,
    length: int,
    end: int,
    length_power: float = 0.0,
) -> Beams:
    """Search the likeliest outputs of each prompt; every module's mode is kept.

    Args:
        model: ``model(tokens)``, or its ``.logits``, is (n, length, vocabulary); position t predicts token t + 1.
        prompts: of one length, at least 1.
        beam: how many beginnings are kept; 1 is greedy decoding.
        length: most tokens of an output, the end token included.
        end: the token that ends an output.
        length_power: λ in [0, 1]; 1 compares means over tokens. Without it short outputs have the advantage.
    Raises:
        ValueError: no prompt, a beam or length below 1, an end that is no token of the model, logits with NaN.
    Guarantee: with a beam no smaller than the number of all beginnings it finds the best outputs, in their order. A
        smaller one may miss the best, and ``log_probability`` is exact all the same.
    Cost: ``length`` runs of n·beam rows, each over the whole row: what was computed before is not kept.
    """
    check_tokens("prompts", prompts)
    check_whole("beam", beam, 1)
    check_whole("length", length, 1)
    check_whole("end", end, 0)
    check_interval("length_power", length_power, "[0, 1]")
    device = home(model)
    prompts = prompts.to(device)
    n, first = prompts.shape
    rows = prompts[:, None].expand(n, beam, first)
    total = torch.full((n, beam), -math.inf, dtype=torch.float64, device=device)
    total[:, 0] = 0.0  # the others are free places
    done = torch.zeros(n, beam, dtype=torch.bool, device=device)
    size = torch.zeros(n, beam, dtype=torch.int64, device=device)
    with evaluating(model):
        for _ in range(length):
            after = log_probabilities(model, rows.flatten(0, 1))[:, -1].double().view(n, beam, -1)
            check_whole("end", end, 0, after.shape[-1] - 1)
            after[done] = -math.inf
            after[..., end].masked_fill_(done, 0.0)  # an output that has ended goes on in one way, at no price
            grown = total[..., None] + after
            longer = (size + ~done).clamp(min=1)
            score = grown / longer[..., None].double() ** length_power
            best = score.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :beam]
            source, token = best // after.shape[-1], best % after.shape[-1]
            total = grown.flatten(1).gather(1, best)
            size, done = longer.gather(1, source), done.gather(1, source) | (token == end)
            rows = rows.gather(1, source[..., None].expand(-1, -1, rows.shape[2]))
            rows = torch.cat((rows, token[..., None]), 2)
            if bool((done | total.isinf()).all()):
                break
    tokens = torch.full((n, beam, length), end, device=device)
    tokens[..., : rows.shape[2] - first] = rows[..., first:]
    tokens[total.isinf()] = end
    return Beams(tokens, total)
