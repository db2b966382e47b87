"""What an argument means as a source: a name, a density, or samples.

Syllabus: 1.04, 1.05
"""

from torch import Tensor

from mlcomp.checks import check_tensor, check_values
from mlcomp.context import isolated
from mlcomp.sources.density import Density
from mlcomp.sources.gaussian_laplace import Gaussian, Laplace
from mlcomp.sources.samples import Samples
from mlcomp.sources.source import Source


@isolated
def as_source(source: Tensor | str | Density) -> Source:
    """Return the source that the argument means.

    Args:
        source: "gaussian" or "laplace" (mean 0, variance 1), a :class:`Density`, or samples: a float tensor of any
            shape.
    Raises:
        ValueError: an unknown name, no sample, NaN or infinity. TypeError: another type.
    """
    if isinstance(source, Density):
        return source
    if isinstance(source, str):
        if source not in ("gaussian", "laplace"):
            raise ValueError(f'source must be "gaussian", "laplace", a Density or samples, got {source!r}')
        return Gaussian() if source == "gaussian" else Laplace()
    if not isinstance(source, Tensor):
        kind = type(source).__name__
        raise TypeError(f'source must be "gaussian", "laplace", a Density or a float tensor of samples, got {kind}')
    check_tensor("source", source)
    if source.numel() == 0:
        raise ValueError("source holds no sample")
    check_values("source", source)
    return Samples(source)
