"""1797 real handwritten digits of 8×8 pixels, from scikit-learn: small enough for exact whole-network Hessians.

E. Alpaydin and C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, CC BY 4.0;
shipped with scikit-learn (BSD-3-Clause), so nothing is downloaded.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mlcomp.checks import check_choice
from mlcomp.context import isolated
from mlcomp.extras import need


@isolated
def digits(split: str = "all") -> tuple[Float[Tensor, "n 1 8 8"], Int64[Tensor, " n"]]:
    """Return images in [0, 1], float32, and their labels.

    Args:
        split: "all" (1797), "train" (1442) or "held_out" (355: every fifth image of each class).
    Raises:
        ValueError: another split.
        ImportError: scikit-learn is not installed.
    """
    check_choice("split", split, ("all", "train", "held_out"))
    bunch = need("sklearn.datasets", "notebooks").load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16  # pixels are counts from 0 to 16
    labels = torch.from_numpy(bunch.target).long()
    if split == "all":
        return images, labels
    # The position of each image within its class: the classes alternate in the file, so that every fifth image of
    # the whole would hold out twice as many of some digits as of others.
    position = (torch.nn.functional.one_hot(labels).cumsum(0) - 1).gather(1, labels[:, None])[:, 0]
    held_out = position % 5 == 4
    chosen = held_out if split == "held_out" else ~held_out
    return images[chosen], labels[chosen]
