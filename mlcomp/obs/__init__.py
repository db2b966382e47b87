"""Methods that use inverse curvature: OBD, OBS, ExactOBS, OBQ, GPTQ, SparseGPT."""

from mlcomp.obs.budget import Choice, choose_levels
from mlcomp.obs.build_database import build_database
from mlcomp.obs.database import Database, Entry, Level, density_levels, load_database
from mlcomp.obs.exact_obs import exact_obs, exact_obs_trace
from mlcomp.obs.fisher_inverse import empirical_fisher_gradients, fisher_inverse
from mlcomp.obs.global_selection import Selection, select_counts
from mlcomp.obs.gptq import gptq
from mlcomp.obs.group_update import group_update
from mlcomp.obs.hessian import InverseHessian, inverse_hessian, layer_hessian
from mlcomp.obs.incoherence import hessian_incoherence, weight_incoherence
from mlcomp.obs.l_obs import l_obs, l_obs_error_bound
from mlcomp.obs.ldlq import ldl, ldlq, ldlq_round
from mlcomp.obs.network_hessian import (
    FlatNetwork,
    flatten_network,
    gauss_newton,
    gauss_newton_diagonal,
    hessian_diagonal,
    network_hessian,
)
from mlcomp.obs.obd import NetworkOBD, network_obd, obd, obd_saliency
from mlcomp.obs.obq import obq
from mlcomp.obs.obs import NetworkOBS, ObsStep, obs, obs_prune_step
from mlcomp.obs.quip import QuIP, quip
from mlcomp.obs.quip_sharp import QuIPSharp, quip_sharp
from mlcomp.obs.refit import refit
from mlcomp.obs.replay import replay
from mlcomp.obs.sparsegpt import sparsegpt
from mlcomp.obs.spqr import spqr
from mlcomp.obs.spqr_format import SpQR
from mlcomp.obs.stitch import level_losses, stitch
from mlcomp.obs.trace import Trace

__all__ = [
    "Choice",
    "Database",
    "Entry",
    "FlatNetwork",
    "InverseHessian",
    "Level",
    "NetworkOBD",
    "NetworkOBS",
    "ObsStep",
    "QuIP",
    "QuIPSharp",
    "Selection",
    "SpQR",
    "Trace",
    "build_database",
    "choose_levels",
    "density_levels",
    "empirical_fisher_gradients",
    "exact_obs",
    "exact_obs_trace",
    "fisher_inverse",
    "flatten_network",
    "gauss_newton",
    "gauss_newton_diagonal",
    "gptq",
    "group_update",
    "hessian_diagonal",
    "hessian_incoherence",
    "inverse_hessian",
    "l_obs",
    "l_obs_error_bound",
    "layer_hessian",
    "ldl",
    "ldlq",
    "ldlq_round",
    "level_losses",
    "load_database",
    "network_hessian",
    "network_obd",
    "obd",
    "obd_saliency",
    "obq",
    "obs",
    "obs_prune_step",
    "quip",
    "quip_sharp",
    "refit",
    "replay",
    "select_counts",
    "sparsegpt",
    "spqr",
    "stitch",
    "weight_incoherence",
]
