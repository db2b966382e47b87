"""The registrations. Options are the ones a user would take; what differs from a method's defaults is said here."""

import torch

from experiments.every_method.registry import register
from mlcomp.formats import absmax_int8
from mlcomp.obs import exact_obs, gptq, l_obs, obd, obq, sparsegpt
from mlcomp.prune import adaprune, magnitude, wanda
from mlcomp.quant import adaquant, adaround, bitsplit, blockwise, rtn

BITS = [{"bits": b} for b in (2, 3, 4)]
GROUPS = [{"bits": b, "group_size": 64} for b in (2, 3, 4)]
ZEROS = [{"sparsity": 0.5}, {"sparsity": 0.7}, {"pattern": (2, 4)}]

register(
    "half precision", "1.01", "reference", torch.Tensor.half, {"dtype": "float16"},
    method=lambda weight, hessian, dtype: weight.half(), data_free=True,
)  # fmt: skip
register("round to nearest", "1.02", "scalar", rtn, *BITS, {"bits": 8}, *GROUPS, data_free=True)
register(
    "round to nearest, clipped", "1.02", "scalar", rtn, *({**s, "clip": "mse"} for s in BITS + GROUPS), data_free=True
)
register("int8 by absolute maximum", "4.02", "scalar", absmax_int8, {"dim": -1}, data_free=True)
register(
    "block-wise data types", "1.12", "scalar", blockwise,
    {"bits": 4, "data_type": "int"}, {"bits": 4, "data_type": "float"}, {"bits": 4, "data_type": "nf4"},
    *({"bits": b, "data_type": "quantile"} for b in (2, 3, 4)), data_free=True,
)  # fmt: skip

register(
    "GPTQ", "2.08", "compensated", gptq,
    *({**s, "clip": "mse", "order": "activation"} for s in BITS), *({**s, "clip": "mse"} for s in GROUPS),
)  # fmt: skip
register("OBQ", "2.08", "compensated", obq, *({**s, "clip": "mse", "damp": 0.01} for s in BITS))
register("AdaRound", "2.09", "compensated", adaround, *BITS)
register("AdaQuant", "2.09", "compensated", adaquant, *BITS)
register("BitSplit", "2.09", "compensated", bitsplit, *BITS)

register("magnitude", "2.07", "pruning", magnitude, *ZEROS, data_free=True)
register(
    "Wanda", "4.09", "pruning", wanda, *ZEROS,
    method=lambda weight, hessian, **setting: wanda(weight, hessian.diagonal().sqrt(), **setting),
)  # fmt: skip
register("OBD", "2.02", "pruning", obd, *ZEROS)
register("L-OBS", "2.04", "pruning", l_obs, *ZEROS[:2])
register("AdaPrune", "2.07", "pruning", adaprune, *ZEROS)
register("SparseGPT", "2.05", "pruning", sparsegpt, *ZEROS)
register("ExactOBS", "2.05", "pruning", exact_obs, *({**s, "damp": 0.01} for s in ZEROS))


def prune_then_quantize(weight, hessian, *, pattern, bits):
    """ExactOBS to a pattern, then OBQ: zero is a point of each grid, so the zeros stay."""
    return obq(exact_obs(weight, hessian, pattern=pattern, damp=0.01), hessian, bits=bits, damp=0.01)


register("ExactOBS, then OBQ", "2.10", "both", obq, {"pattern": (2, 4), "bits": 4}, method=prune_then_quantize)
