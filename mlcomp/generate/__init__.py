"""Text from a language model, and what is made of several texts."""

from mlcomp.generate.beam_search import Beams, search_outputs
from mlcomp.generate.outputs import output_log_probability, sample_outputs
from mlcomp.generate.self_consistency import majority_vote, voting_accuracy

__all__ = [
    "Beams",
    "majority_vote",
    "output_log_probability",
    "sample_outputs",
    "search_outputs",
    "voting_accuracy",
]
