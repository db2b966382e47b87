"""Re-estimate BatchNorm statistics of a compressed model, whose layers' outputs have shifted.

Notation: μ, σ² running mean and variance of a channel.
Source: Hubara et al. 2021, arXiv:2006.10518 (para-normalization); Frantar, Singh, Alistarh 2022, arXiv:2208.11580,
section 6 (after compression).   Syllabus: 1.08, 2.10
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlcomp.context import isolated_run
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.running import call_model, check_batches
from mlcomp.modes import evaluating


@isolated_run
def reestimate_batchnorm(model: nn.Module, batches: Iterable) -> nn.Module:
    """Return a copy of ``model`` whose BatchNorm statistics are the averages over ``batches``.

    Every BatchNorm layer normalizes with the statistics of the batch itself while they are collected, so that the
    layers after it see inputs that are right already. All batches count alike, whatever their size; the variance is
    the mean of the batches' own (unbiased) variances, as in training.

    Args:
        model: not modified; everything but BatchNorm runs in eval mode, without gradients.
        batches: iterable of batches as for :func:`mlcomp.layerwise.compress`, read once; large ones are better.
    Returns:
        The copy, each module in the mode it had. A layer without running statistics stays as it is.
    Raises:
        ValueError: the model has no BatchNorm with running statistics, batches is empty, or a batch gives NaN or inf
            statistics (the message names the layer).
    Cost: one forward pass over the batches, and a second model.
    """
    check_batches(batches)
    result = copy_model(model)
    layers = {
        name: module
        for name, module in result.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    if not layers:
        raise ValueError("the model has no BatchNorm layer with running statistics")
    momenta = {name: module.momentum for name, module in layers.items()}
    count = 0
    with evaluating(result):
        for module in layers.values():
            module.reset_running_stats()
            module.momentum = None  # torch's name for the plain average over batches
            module.train()
        for batch in batches:
            try:
                call_model(result, batch)
            except ValueError as problem:
                if "more than 1 value per channel" not in str(problem):
                    raise
                raise ValueError(
                    f"batch {count} has one sample, and one value a channel has no variance: give it to another "
                    "batch, or leave it out (a DataLoader does so with drop_last=True)"
                ) from problem
            count += 1
    if not count:
        raise ValueError("batches is empty: there is nothing to estimate statistics from")
    for name, module in layers.items():
        module.momentum = momenta[name]
        # None only where running statistics are not tracked.
        assert module.running_mean is not None and module.running_var is not None
        assert module.num_batches_tracked is not None
        if not (torch.isfinite(module.running_mean).all() and torch.isfinite(module.running_var).all()):
            raise ValueError(f"layer {name!r}: its statistics on these batches are NaN or infinite")
        if not int(module.num_batches_tracked):
            raise ValueError(f"layer {name!r} was never called, so it has no statistics")
    return result
