"""The recommended options of each method, used where none are given.

A recipe names options of the method; whoever gives one of them has their own value.

gptq and rtn: at 4 bits in groups of 64 an affine grid with steps in float16 takes 4.3125 bits for each weight, a
symmetric one with steps in float32 4.5; the affine grid has the smaller error all the same, for the range of a group
is rarely symmetric. The range is cut where the squared error of the group is least. GPTQ then rounds the columns with
the largest inputs first, while all others can still make up for them; the groups stay runs of neighbours, fitted to
the weights as they were, so files and kernels need no permutation. On SmolLM2, one draw of calibration text, inputs
taken block by block, the perplexity is 18.3 (dense 16.9), where the same order on a symmetric grid without clipping
has 20.2; ``experiments/four_bit_recipes.py`` measures it on several draws, stage by stage.
"""

from collections.abc import Mapping
from typing import Any

import torch

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "rtn": {"bits": 4, "group_size": 64, "clip": "mse", "scale_dtype": torch.float16},
    "gptq": {
        "bits": 4,
        "group_size": 64,
        "clip": "mse",
        "scale_dtype": torch.float16,
        "order": "activation",
        "static_groups": True,
    },
}
