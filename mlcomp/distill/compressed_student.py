r"""Distillation on top of compression: a pruned or quantized network is retrained by the network that it was.

Zeros stay zeros: they are set back after each step. A network under quantization-aware training keeps rounding its
weights in each forward pass, and the gradient goes straight through.
Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2 (the loss); Polino, Pascanu, Alistarh 2018,
arXiv:1802.05668, section 3 (quantized student, the weights in full precision beside it); Sanh, Wolf, Rush 2020,
arXiv:2005.07683 (pruned student).   Syllabus: 3.15
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from mlcomp.context import isolated_run
from mlcomp.distill.train_student import Taught, teach_outputs
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.weights import keep_zeros, network_sparsity
from mlcomp.quant.aware_training.qat import QATLayer


@isolated_run
def compressed_student(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    alpha: float = 1.0,
    layers: Iterable[str] | None = None,
    epochs: int,
    lr: float,
    **options: Any,
) -> Taught:
    """Train a copy of a compressed network by a teacher, and keep it compressed.

    Args:
        student: pruned (zeros in its weights), prepared by :func:`mlcomp.quant.prepare_qat`, or both; not modified.
        teacher: usually the network before compression; see :func:`mlcomp.distill.train_student`, as for
            ``inputs``, ``labels``, ``temperature``, ``alpha``, ``hints`` and ``hint_weight`` (among the options).
        layers: whose zeros are held; None: of all linear and convolutional layers.
        epochs, lr, options: as for :func:`mlcomp.train.train`, but ``loss``.
    Returns:
        the student, for :func:`mlcomp.quant.finish_qat` if it is quantized.
    Raises:
        ValueError: the student has neither zeros nor layers that quantize, so there is nothing to hold; and what
            ``train_student`` refuses.
    Guarantee: each weight that is zero at the start is zero at the end, also where it is rounded.
    """
    result = copy_model(student)
    layers = None if layers is None else list(layers)
    quantized = any(isinstance(module, QATLayer) for module in result.modules())
    if not quantized and network_sparsity(result, layers) == 0:
        raise ValueError(
            "the student has no zeros and no layers that quantize: prune it or call prepare_qat first, or use "
            "train_student"
        )
    hold, own = keep_zeros(result, layers), options.pop("after_step", None)

    def after_step(step: int) -> None:
        hold(step)
        if own is not None:
            own(step)

    options |= {"epochs": epochs, "lr": lr, "after_step": after_step}
    history = teach_outputs(result, teacher, inputs, labels, temperature=temperature, alpha=alpha, **options)
    return Taught(result, history)
