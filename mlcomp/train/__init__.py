"""The one training loop of the course."""

from mlcomp.train.loop import History, batch_starts, random_batches, train

__all__ = [
    "History",
    "batch_starts",
    "random_batches",
    "train",
]
