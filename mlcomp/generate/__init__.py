"""Text from language models: sampling, and what is made of the samples."""

from mlcomp.generate.sampling import sample
from mlcomp.generate.self_consistency import majority_vote, voting_accuracy

__all__ = ["majority_vote", "sample", "voting_accuracy"]
