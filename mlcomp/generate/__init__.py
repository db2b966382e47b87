"""Text from a language model."""

from mlcomp.generate.beam_search import Beams, search_outputs
from mlcomp.generate.outputs import output_log_probability, sample_outputs

__all__ = [
    "Beams",
    "output_log_probability",
    "sample_outputs",
    "search_outputs",
]
