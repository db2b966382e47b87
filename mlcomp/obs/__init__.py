"""Methods that use inverse curvature: OBD, OBS, ExactOBS, OBQ, GPTQ, SparseGPT."""

from mlcomp.obs.gptq import gptq
from mlcomp.obs.hessian import InverseHessian, inverse_hessian, layer_hessian
from mlcomp.obs.sparsegpt import sparsegpt

__all__ = ["InverseHessian", "gptq", "inverse_hessian", "layer_hessian", "sparsegpt"]
