"""Methods that use inverse curvature: OBD, OBS, ExactOBS, OBQ, GPTQ, SparseGPT."""

from mlcomp.obs.exact_obs import exact_obs, exact_obs_trace
from mlcomp.obs.global_selection import Selection, select_counts
from mlcomp.obs.gptq import gptq
from mlcomp.obs.group_update import group_update
from mlcomp.obs.hessian import InverseHessian, inverse_hessian, layer_hessian
from mlcomp.obs.obq import obq
from mlcomp.obs.refit import refit
from mlcomp.obs.sparsegpt import sparsegpt
from mlcomp.obs.trace import Trace

__all__ = [
    "InverseHessian",
    "Selection",
    "Trace",
    "exact_obs",
    "exact_obs_trace",
    "gptq",
    "group_update",
    "inverse_hessian",
    "layer_hessian",
    "obq",
    "refit",
    "select_counts",
    "sparsegpt",
]
