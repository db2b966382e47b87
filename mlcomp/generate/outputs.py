r"""Outputs of a model of sequences: how likely they are, and drawn at random.

Notation: x a prompt, y its output: tokens up to the end token e, which belongs to it, or m tokens without one.
$\log p(y \mid x) = \sum_t \log p(y_t \mid x, y_{<t})$, so the probabilities of all outputs of a prompt add up to 1.
In a tensor (…, m) what follows the first e is filling.
Source: Sutskever, Vinyals, Le 2014, arXiv:1409.3215, eq. (1).   Syllabus: 4.15
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_codes, check_finite, check_interval, check_tensor, check_whole
from mlcomp.context import isolated_run
from mlcomp.modes import evaluating, home


@isolated_run
def output_log_probability(
    model: nn.Module, prompts: Int64[Tensor, "n prompt"], outputs: Int64[Tensor, "n length"], *, end: int
) -> Float[Tensor, " n"]:
    """Return log p(output | prompt) [nats] for each pair, the end token included; every module's mode is kept.

    Args:
        model: ``model(tokens)``, or its ``.logits``, is (n, length, vocabulary); position t predicts token t + 1.
        prompts: of one length, at least 1.
        outputs: what stands after the first ``end`` does not count.
        end: the token that ends an output.
    Raises:
        ValueError: no prompt, numbers of prompts and outputs that differ, no token, a token below 0, logits with NaN.
    """
    check_tokens("prompts", prompts)
    check_tokens("outputs", outputs)
    check_whole("end", end, 0)
    if len(outputs) != len(prompts):
        raise ValueError(f"there must be one output for each prompt, got {len(prompts)} and {len(outputs)}")
    with evaluating(model):
        rows = torch.cat((prompts, outputs), 1).to(home(model))
        chosen = log_probabilities(model, rows[:, :-1])[:, prompts.shape[1] - 1 :]
        picked = chosen.gather(2, rows[:, prompts.shape[1] :, None])[..., 0]
        return picked.where(output_mask(outputs, end=end).to(picked.device), 0.0).sum(1)


@isolated_run
def sample_outputs(
    model: nn.Module,
    prompts: Int64[Tensor, "n prompt"],
    *,
    length: int,
    end: int,
    temperature: float | int = 1.0,
    seed: int = 0,
) -> Int64[Tensor, "n length"]:
    """Draw one output for each prompt, token by token; the global random state is left alone.

    Args:
        model, prompts, end: as in :func:`output_log_probability`.
        length: most tokens of an output.
        temperature: the logits are divided by it; 1 draws from the model itself, 0 takes the likeliest token.
        seed: of the draws. They are made on the CPU, one number for each prompt and step.
    Returns:
        outputs, filled with ``end`` behind their end.
    Raises:
        ValueError: no prompt, a length below 1, a temperature that is negative or not finite, logits with NaN.
    Cost: ``length`` runs over whole rows; of the last token only, where the model has ``extend(tokens, past)`` as
        :class:`mlcomp.models.token_decoder.TokenDecoder` has.
    """
    check_tokens("prompts", prompts)
    check_whole("length", length, 1)
    check_whole("end", end, 0)
    check_interval("temperature", temperature, "[0, inf)")
    generator = torch.Generator().manual_seed(seed)
    rows = prompts.to(home(model))
    done = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    past = None
    with evaluating(model):
        for step in range(length):
            log_p, past = _next(model, rows, step, past)
            u = torch.rand(len(log_p), 1, generator=generator, dtype=torch.float64, device="cpu").to(log_p.device)
            token = log_p.argmax(-1) if temperature == 0 else _drawn((log_p / temperature).softmax(-1), u)
            token = token.where(~done, end)
            rows = torch.cat((rows, token[:, None]), 1)
            done |= token == end
            if bool(done.all()):
                break
    outputs = rows[:, prompts.shape[1] :]
    return F.pad(outputs, (0, length - outputs.shape[1]), value=end)


def _next(model: nn.Module, rows: Tensor, step: int, past: Any) -> tuple[Tensor, Any]:
    """Return log p of the token after each row, and what the model keeps of the rows, if it can."""
    if not extends(model):
        return log_probabilities(model, rows)[:, -1], None
    extend: Any = model.extend
    logits, past = extend(rows[:, -1:] if step else rows, past)
    return _normalized(logits[:, -1]), past


def extends(model: nn.Module) -> bool:
    """Return whether the model has ``extend(tokens, past)``; that of containers appends modules to them."""
    return hasattr(model, "extend") and not isinstance(model, nn.Sequential | nn.ModuleList | nn.ParameterList)


def _drawn(p: Tensor, u: Tensor) -> Tensor:
    """Return the token at which the running sum of each row's probabilities passes its number in [0, 1)."""
    total = p.double().cumsum(-1)
    return torch.searchsorted(total, u * total[:, -1:], right=True)[:, 0].clamp(max=p.shape[-1] - 1)


def output_mask(outputs: Int64[Tensor, "*batch length"], *, end: int) -> Bool[Tensor, "*batch length"]:
    """Return what belongs to the outputs: all up to the first ``end``, which counts."""
    ended = (outputs == end).long().cumsum(-1)
    return (ended == 0) | ((ended == 1) & (outputs == end))


def log_probabilities(model: nn.Module, tokens: Int64[Tensor, "n length"]) -> Float[Tensor, "n length classes"]:
    """Return the logarithm of the probabilities of the token after each position, at least in float32."""
    logits = model(tokens)
    return _normalized(getattr(logits, "logits", logits))


def _normalized(logits: Tensor) -> Tensor:
    check_finite("logits", logits)
    return log_softmax(logits)


def log_softmax(logits: Tensor) -> Tensor:
    """Return log p, at least in float32."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def check_tokens(name: str, tokens: Tensor) -> None:
    """Raise unless these are rows of tokens, at least one of each."""
    check_tensor(name, tokens)
    check_codes(name, tokens, 2**31)
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(f"{name} must be (n, length) with at least one token, got {tuple(tokens.shape)}")
