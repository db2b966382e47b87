"""Methods that use inverse curvature: OBD, OBS, ExactOBS, OBQ, GPTQ, SparseGPT."""

from mlcomp.obs.hessian import InverseHessian, inverse_hessian, layer_hessian

__all__ = ["InverseHessian", "inverse_hessian", "layer_hessian"]
