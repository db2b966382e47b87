r"""RigL: train sparse from the start, and let the connections move to where the gradient is large.

Notation: t step, ΔT steps between updates, $f(t) = \frac\alpha2 (1 + \cos(\pi t / T_\mathrm{end}))$ the fraction of a
layer's connections that move.
Source: Evci, Gale, Menick, Castro, Elsen 2020, arXiv:1911.11134, section 3 and algorithm 1.   Syllabus: 3.04
"""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from mlcomp.checks import check_interval, check_whole
from mlcomp.context import isolated_run
from mlcomp.prune.during_training.sparse_training import SparseTraining, sparse_training
from mlcomp.train.loop import batch_starts


@isolated_run
def rigl(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int = 64,
    every: int = 100,
    fraction: float = 0.3,
    end: float = 0.75,
    layers: Iterable[str] | None = None,
    **options: Any,
) -> SparseTraining:
    r"""Train a copy of a sparse network; now and then its weakest connections go, and the most wanted ones come.

    Every ΔT steps each layer drops the fraction f(t) of its connections, the smallest weights, and grows as many
    where $|\partial L/\partial w|$ is largest among all that are missing now, those just dropped included.

    Args:
        model: its zeros are its missing connections; not modified. :func:`mlcomp.prune.erdos_renyi` or another
            pruner makes them, :func:`mlcomp.layerwise.with_weights` puts them in. A layer without zeros stays dense.
        inputs, labels, epochs, batch_size: as in :func:`mlcomp.train.train`, which does the training.
        every: ΔT, in steps.
        fraction: α, the fraction that moves at first.
        end: $T_\mathrm{end}$ as a share of all steps; after it connections stay where they are.
        layers: names of the layers; None: all linear and convolutional ones.
        options: ``lr`` and all other options of ``train``, but for ``before_step`` and ``after_step``.
    Returns:
        see :class:`SparseTraining`.
    Raises:
        ValueError: fraction or end outside [0, 1], every below 1, no layers, and all that ``train`` refuses.
    Guarantee: each layer keeps its number of connections. New ones start at zero, with moments of zero in the
        optimizer. An update takes the place of that step's gradient step, as in algorithm 1. The same arguments give
        the same network, interrupted and resumed or not.
    Cost: that of dense training here, since masked weights are multiplied like others. Counted as in the paper, an
        update costs the dense gradient of one step in ΔT.
    """
    check_interval("fraction", fraction, "[0, 1]")
    check_interval("end", end, "[0, 1]")
    check_whole("every", every, 1)
    last = end * epochs * len(batch_starts(len(inputs), batch_size))

    def moving(step: int) -> float:
        return fraction / 2 * (1 + math.cos(math.pi * step / last)) if step % every == 0 and step < last else 0.0

    def wanted(name: str, gradient: Tensor, step: int) -> Tensor:
        return gradient.abs()

    options |= {"epochs": epochs, "batch_size": batch_size, "layers": layers}
    return sparse_training(model, inputs, labels, moving=moving, wanted=wanted, replaces_step=True, **options)
