"""Where the numbers of a scalar quantizer or a pruner come from: densities, and the entries of a tensor."""

from mlcomp.sources.as_source import as_source
from mlcomp.sources.density import Density
from mlcomp.sources.gaussian_laplace import Gaussian, Laplace, gaussian, laplace
from mlcomp.sources.samples import Samples, sample
from mlcomp.sources.source import Cells, Continuous, Source
from mlcomp.sources.student_t import StudentT, student_t

__all__ = [
    "Cells",
    "Continuous",
    "Density",
    "Gaussian",
    "Laplace",
    "Samples",
    "Source",
    "StudentT",
    "as_source",
    "gaussian",
    "laplace",
    "sample",
    "student_t",
]
