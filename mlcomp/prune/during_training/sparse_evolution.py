r"""SET, sparse evolutionary training: after each epoch the smallest connections go, and random ones come.

Notation: ζ the fraction of a layer's connections that move.
Source: Mocanu et al. 2018, arXiv:1707.04780, algorithm 1.   Syllabus: 3.04
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_interval, check_whole
from mlcomp.context import isolated_run
from mlcomp.fingerprint import hash_values
from mlcomp.prune.during_training.sparse_training import SparseTraining, sparse_training
from mlcomp.train.loop import batch_starts


@isolated_run
def sparse_evolution(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int = 64,
    every: int | None = None,
    fraction: float = 0.3,
    seed: int = 0,
    layers: Iterable[str] | None = None,
    **options: Any,
) -> SparseTraining:
    r"""Train a copy of a sparse network; now and then its weakest connections go, and random ones come.

    Args:
        model: its zeros are its missing connections; not modified. The paper's start is
            :func:`mlcomp.prune.erdos_renyi`. A layer without zeros stays dense.
        inputs, labels, epochs, batch_size: as in :func:`mlcomp.train.train`, which does the training.
        every: steps between updates; None: those of an epoch, as in the paper.
        fraction: ζ, the fraction that moves each time; the paper takes 0.3.
        seed: of the training and of the choice of new connections; the global random state is left alone.
        layers: names of the layers; None: all linear and convolutional ones.
        options: ``lr`` and all other options of ``train``, but for ``before_step`` and ``after_step``.
    Returns:
        see :class:`SparseTraining`.
    Raises:
        ValueError: fraction outside [0, 1], every below 1, no layers, and all that ``train`` refuses.
    Guarantee: each layer keeps its number of connections; after the last step none moves. The same arguments give
        the same network, interrupted and resumed or not.
    Deviations: the paper drops the fraction ζ of the smallest positive and of the largest negative weights, here the
        smallest magnitudes go, whatever their signs, as in RigL's comparison; and new connections start at zero, not
        at random values.
    """
    check_interval("fraction", fraction, "[0, 1]")
    per_epoch = len(batch_starts(len(inputs), batch_size))
    if every is not None:
        check_whole("every", every, 1)
    period = every or per_epoch

    def moving(step: int) -> float:
        return fraction if step % period == 0 and step < epochs * per_epoch else 0.0

    def wanted(name: str, gradient: Tensor, step: int) -> Tensor:
        # A draw of its own for each step and layer, so that a resumed run repeats it; on the CPU, so that all devices
        # make the same.
        generator = torch.Generator().manual_seed(int(hash_values((seed, step, name))[:15], 16))
        ranks = torch.rand(gradient.shape, generator=generator, dtype=torch.float32, device="cpu")
        return ranks.to(gradient.device)

    options |= {"epochs": epochs, "batch_size": batch_size, "seed": seed, "layers": layers}
    return sparse_training(model, inputs, labels, moving=moving, wanted=wanted, replaces_step=False, **options)
