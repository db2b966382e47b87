"""The registrations. Options are those a user would take; the table shows what differs from the defaults."""

from functools import partial

import torch

from experiments.every_method import composed, fisher, networks, structured
from experiments.every_method.registry import register
from mlcomp.distill import cofi
from mlcomp.formats import absmax_int8
from mlcomp.obs import (
    exact_obs,
    gptq,
    l_obs,
    mfac,
    obd,
    obert,
    obq,
    quantized_sparsegpt,
    quip,
    quip_sharp,
    sparsegpt,
    spqr,
    woodfisher,
)
from mlcomp.prune import (
    adaprune,
    alternating_projections,
    bonsai,
    calibrate,
    channel_permutation,
    global_magnitude,
    gradual_pruning,
    group_magnitude,
    head_loss_changes,
    layer_normalized,
    magnitude,
    wanda,
)
from mlcomp.quant import (
    MuLaw,
    adaquant,
    adaround,
    aqlm,
    bitsplit,
    blockwise,
    brecq,
    companded_codebook,
    double_quantize,
    gobo,
    llm_int8,
    lloyd_max,
    onebit_decompose,
    prepare_diffq,
    prepare_qat,
    product_quantization,
    ptq,
    pv_tuning,
    qlora,
    quantile_codebook,
    residual_quantization,
    rtn,
    table_quantize,
    tree_quantization,
    tune_block,
    vector_quantization,
)

BITS = [{"bits": b} for b in (2, 3, 4)]
# A step of 32 bits for 64 weights would be half a bit each, for digits that no method needs.
GROUPS = [{"bits": b, "group_size": 64, "scale_dtype": torch.float16} for b in (2, 3, 4)]
ZEROS = [{"sparsity": 0.5}, {"sparsity": 0.7}, {"pattern": (2, 4)}]


def data_free(function, **fixed):
    """Return ``function`` as a method that does not look at the Hessian, with some options fixed."""
    return lambda weight, hessian, **setting: function(weight, **fixed, **setting)


def seeded(function, **fixed):
    """Return ``function`` as a method that draws from a generator with seed 0."""
    return lambda weight, hessian, **setting: function(
        weight, generator=torch.Generator().manual_seed(0), **fixed, **setting
    )


def from_table(make, scale):
    """Return the method that rounds each scaled row to the table ``make(levels)``."""
    return lambda weight, hessian, bits: table_quantize(weight, make(2**bits), scale=scale)


register(
    "half precision", "1.01", "reference", torch.Tensor.half, {"dtype": "float16"},
    method=lambda weight, hessian, dtype: weight.half(), data_free=True,
)  # fmt: skip

# Each weight on its own.
register("round to nearest", "1.02, 1.03", "scalar", rtn, *BITS, {"bits": 8}, *GROUPS, data_free=True)
register(
    "round to nearest, clipped", "1.02, 1.03", "scalar", rtn, *BITS, *GROUPS, method=data_free(rtn, clip="mse"),
    data_free=True,
)  # fmt: skip
register("int8 by absolute maximum", "4.02", "scalar", absmax_int8, {"dim": -1}, data_free=True)
register(
    "quantiles of a Gaussian", "1.04", "scalar", table_quantize, *BITS,
    method=from_table(lambda n: quantile_codebook("gaussian", n), "rms"), data_free=True,
)  # fmt: skip
register(
    "Lloyd–Max for a Gaussian", "1.05", "scalar", table_quantize, *BITS,
    method=from_table(lambda n: lloyd_max("gaussian", n), "rms"), data_free=True,
)  # fmt: skip
register(
    "companding (μ-law)", "1.06", "scalar", table_quantize, *BITS,
    method=from_table(lambda n: companded_codebook(MuLaw(), n), "absmax"), data_free=True,
)  # fmt: skip
register(
    "block-wise data types", "1.12", "scalar", blockwise,
    *({"bits": 4, "data_type": t} for t in ("int", "float", "nf4")),
    *({"bits": b, "data_type": "quantile"} for b in (2, 3, 4)), data_free=True,
)  # fmt: skip
register("NF4, scales in 8 bits", "4.08", "scalar", double_quantize, {"block_size": 64}, data_free=True)
register("GOBO", "4.04", "scalar", gobo, {"bits": 3}, {"bits": 4}, data_free=True)
# Where its training starts.
register("OneBit, untrained", "5.04", "scalar", onebit_decompose, {"dtype": torch.float16}, data_free=True)

# Codes chosen with the Hessian.
register("GPTQ", "2.08", "compensated", gptq, *({**s, "clip": "mse", "order": "activation"} for s in BITS + GROUPS))
register("OBQ", "2.08", "compensated", obq, {"bits": 3, "clip": "mse", "damp": 0.01})
register("AdaRound", "2.09", "compensated", adaround, *({**s, "steps": 100} for s in BITS))
register("AdaQuant", "2.09", "compensated", adaquant, *({**s, "steps": 100} for s in BITS))
register("BitSplit", "2.09", "compensated", bitsplit, *BITS)
# Thresholds that keep about one weight in a hundred out: the coarser the codes, the more each would like to.
register(
    "SpQR", "1.11", "compensated", spqr, {"bits": 2, "threshold": 1.0}, {"bits": 3, "threshold": 0.3},
    {"bits": 4, "threshold": 0.07},
)  # fmt: skip
register("QuIP", "1.14", "compensated", quip, *({**bits, "transform": "hadamard"} for bits in BITS))

# Several weights to a code.
register(
    "k-means vectors", "1.07", "vector", vector_quantization, {"dim": 4, "entries": 256}, {"dim": 2, "entries": 64},
    method=seeded(vector_quantization, max_steps=20), data_free=True,
)  # fmt: skip
register(
    "product quantization", "1.07", "vector", product_quantization, {"dim": 8, "parts": 2, "entries": 256},
    method=seeded(product_quantization, max_steps=20), data_free=True,
)  # fmt: skip
register(
    "residual quantization", "1.07", "vector", residual_quantization, {"dim": 8, "stages": 2, "entries": 256},
    method=seeded(residual_quantization, max_steps=20), data_free=True,
)  # fmt: skip
register(
    "tree quantization", "1.07", "vector", tree_quantization, {"dim": 4, "entries": 256, "branching": 16},
    method=seeded(tree_quantization, max_steps=20), data_free=True,
)  # fmt: skip
register("QuIP#", "1.14", "vector", quip_sharp, *BITS)
register(
    "AQLM", "1.13", "vector", aqlm, {"dim": 8, "books": 2, "max_rounds": 2}, {"dim": 4, "books": 1},
    {"dim": 4, "books": 2, "code_bits": 6},
)  # fmt: skip

# Zeros.
register("magnitude", "2.07", "pruning", magnitude, *ZEROS, data_free=True)
register(
    "Wanda", "4.09", "pruning", wanda, *ZEROS,
    method=lambda weight, hessian, **setting: wanda(weight, hessian.diagonal().sqrt(), **setting),
)  # fmt: skip
register(
    "magnitude, one threshold", "2.07", "pruning", global_magnitude, *ZEROS[:2],
    method=networks.ranked(global_magnitude), whole=True, data_free=True,
)  # fmt: skip
register(
    "layer-normalised magnitude", "1.20", "pruning", layer_normalized, *ZEROS[:2],
    method=networks.ranked(layer_normalized), whole=True, data_free=True,
)  # fmt: skip
register(
    "magnitude of rows or columns", "3.05", "pruning", group_magnitude,
    *({"granularity": g, "sparsity": 0.3} for g in ("filter", "channel")), data_free=True,
)  # fmt: skip
register(
    "2:4 after a permutation", "3.07", "pruning", channel_permutation, {"search": "splits"},
    method=composed.permuted_two_four, data_free=True,
)  # fmt: skip
register(
    "sparse plus low rank", "3.01", "pruning", alternating_projections, {"rank": 16, "sparsity": 0.5},
    method=composed.sparse_plus_low_rank, data_free=True,
)  # fmt: skip
register("OBD", "2.02", "pruning", obd, *ZEROS)
register("L-OBS", "2.04", "pruning", l_obs, *ZEROS[:2])
register("AdaPrune", "2.07", "pruning", adaprune, *ZEROS)
register("SparseGPT", "2.05, 2.06", "pruning", sparsegpt, *ZEROS)
for name, function, fixed in (
    ("WoodFisher", woodfisher, {"block_size": 50}),
    ("M-FAC", mfac, {}),
    ("oBERT, groups of 4", obert, {"block_size": 48, "group_size": 4}),
):
    register(name, "3.10", "pruning", function, ZEROS[0], method=fisher.on_gradients(function, **fixed), whole=True)
register("ExactOBS", "2.05, 2.06", "pruning", exact_obs, *({**s, "damp": 0.01} for s in (ZEROS[0], ZEROS[2])))


def prune_then_round(weight, hessian, *, pattern, bits):
    """SparseGPT to a pattern, then rounding: zero is a point of each grid, so the zeros stay."""
    return rtn(sparsegpt(weight, hessian, pattern=pattern), bits=bits, group_size=64, clip="mse")


register(
    "SparseGPT, then rounding", "2.10", "both", rtn, *({"pattern": (2, 4), "bits": b} for b in (3, 4)),
    method=prune_then_round,
)  # fmt: skip
# The grids of the row above, so that only the order of the work differs.
register(
    "SparseGPT, joint", "3.11", "both", quantized_sparsegpt,
    *({"pattern": (2, 4), "bits": b} for b in (3, 4)),
    method=partial(quantized_sparsegpt, group_size=64, clip="mse"),
)  # fmt: skip

# Towards the outputs of blocks, or of the network.
register(
    "PTQ, inputs rounded", "1.08", "scalar", ptq, *({"weight_bits": b, "input_bits": 8} for b in (4, 8)),
    method=networks.post_training, whole=True,
)  # fmt: skip
register(
    "LLM.int8, inputs rounded", "4.05", "scalar", llm_int8, {"threshold": 6.0}, {"threshold": float("inf")},
    method=networks.mixed_int8, whole=True, data_free=True,
)  # fmt: skip
register(
    "BRECQ", "2.09", "tuned", brecq, *({"bits": b, "steps": 100} for b in (2, 3)), method=networks.block_rounding,
    whole=True,
)  # fmt: skip
register(
    "AQLM, blocks tuned", "1.13", "tuned", tune_block, {"dim": 4, "books": 1},
    method=partial(networks.additive, tuning="aqlm+block tuning"), whole=True,
)  # fmt: skip
register(
    "AQLM, PV-tuning", "1.15", "tuned", pv_tuning, {"dim": 4, "books": 1},
    method=partial(networks.additive, tuning="aqlm+pv"), whole=True,
)  # fmt: skip
register("QAT, learned steps", "1.09", "tuned", prepare_qat, *BITS, method=networks.aware_training, whole=True)
register(
    "DiffQ", "1.10", "tuned", prepare_diffq, {"target_bits": 3.0}, {"target_bits": 6.0},
    method=networks.learned_bits, whole=True,
)  # fmt: skip
register("QLoRA", "4.08", "tuned", qlora, {"rank": 8}, method=networks.low_rank_beside_codes, whole=True)
register(
    "layer-normalised magnitude, calibrated", "1.21", "tuned", calibrate, ZEROS[0], method=networks.calibrated,
    whole=True,
)  # fmt: skip
register("gradual pruning", "1.17, 1.19", "tuned", gradual_pruning, ZEROS[0], method=networks.gradual, whole=True)
register(
    "heads, one by one", "4.10", "tuned", head_loss_changes, {"heads": 0.25},
    method=structured.structured(structured.heads_one_by_one), whole=True,
)  # fmt: skip
register(
    "Bonsai", "4.12", "tuned", bonsai, {"sparsity": 0.3}, method=structured.structured(structured.by_bonsai),
    whole=True,
)  # fmt: skip
register(
    "CoFi", "4.11", "tuned", cofi, {"sparsity": 0.3},
    method=structured.structured(structured.by_cofi, networks.EPOCHS - structured.GATED), whole=True,
)  # fmt: skip
