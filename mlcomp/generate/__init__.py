"""Text from a language model."""

from mlcomp.generate.beam_search import Beams, beam_search
from mlcomp.generate.outputs import output_log_probability, sample_outputs

__all__ = [
    "Beams",
    "beam_search",
    "output_log_probability",
    "sample_outputs",
]
