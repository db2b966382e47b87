"""Methods that use inverse curvature: OBD, OBS, L-OBS, ExactOBS, OBQ; EBD, WoodFisher, M-FAC, oBERT."""

from mlcomp.addresses import handed_on, shorten
from mlcomp.layerwise.hessian import InverseHessian, inverse_hessian, layer_hessian
from mlcomp.obs.early_brain_damage import ebd_saliency, network_ebd
from mlcomp.obs.exact_obs import exact_obs, exact_obs_trace
from mlcomp.obs.fisher_inverse import empirical_fisher_gradients, fisher_inverse
from mlcomp.obs.global_selection import Selection, select_counts
from mlcomp.obs.group_update import group_update
from mlcomp.obs.l_obs import l_obs, l_obs_error_bound
from mlcomp.obs.literal import literal_exact_obs, literal_obq
from mlcomp.obs.mfac import DynamicMFAC, MFACInverse, joint_step, mfac, mfac_inverse
from mlcomp.obs.network_hessian import (
    FlatNetwork,
    flatten_network,
    gauss_newton,
    gauss_newton_diagonal,
    hessian_diagonal,
    network_hessian,
)
from mlcomp.obs.obd import NetworkOBD, network_obd, obd, obd_saliency
from mlcomp.obs.obert import obert, obert_saliency
from mlcomp.obs.obq import obq
from mlcomp.obs.obs import NetworkOBS, ObsStep, obs, obs_prune_step
from mlcomp.obs.quantized_sparsegpt import quantized_sparsegpt
from mlcomp.obs.refit import refit
from mlcomp.obs.replay import replay
from mlcomp.obs.trace import Trace
from mlcomp.obs.woodfisher import BlockInverse, block_fisher_inverse, woodfisher
from mlcomp.prune.post_training.sparsegpt import sparsegpt
from mlcomp.quant.post_training.gptq import gptq
from mlcomp.quant.post_training.incoherence import hessian_incoherence, weight_incoherence
from mlcomp.quant.post_training.ldlq import ldl, ldlq, ldlq_round
from mlcomp.quant.post_training.quip import QuIP, quip
from mlcomp.quant.post_training.quip_sharp import QuIPSharp, quip_sharp
from mlcomp.quant.post_training.spqr import spqr
from mlcomp.quant.post_training.spqr_format import SpQR

__all__ = [
    "BlockInverse",
    "Choice",
    "Database",
    "DynamicMFAC",
    "Entry",
    "FlatNetwork",
    "InverseHessian",
    "Level",
    "MFACInverse",
    "NetworkOBD",
    "NetworkOBS",
    "ObsStep",
    "QuIP",
    "QuIPSharp",
    "Selection",
    "SpQR",
    "Trace",
    "block_fisher_inverse",
    "build_database",
    "choose_levels",
    "density_levels",
    "ebd_saliency",
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
    "joint_step",
    "l_obs",
    "l_obs_error_bound",
    "layer_hessian",
    "ldl",
    "ldlq",
    "ldlq_round",
    "level_losses",
    "literal_exact_obs",
    "literal_obq",
    "load_database",
    "mfac",
    "mfac_inverse",
    "network_ebd",
    "network_hessian",
    "network_obd",
    "obd",
    "obd_saliency",
    "obert",
    "obert_saliency",
    "obq",
    "obs",
    "obs_prune_step",
    "quantized_sparsegpt",
    "quip",
    "quip_sharp",
    "refit",
    "replay",
    "select_counts",
    "sparsegpt",
    "spqr",
    "stitch",
    "weight_incoherence",
    "woodfisher",
]

# They compare methods, or spread them over a network, and stand above this package now.
__getattr__ = handed_on(
    __name__,
    {
        "Choice": "mlcomp.budget.choose_levels",
        "Database": "mlcomp.budget.database",
        "Entry": "mlcomp.budget.database",
        "Level": "mlcomp.budget.database",
        "build_database": "mlcomp.budget.build_database",
        "choose_levels": "mlcomp.budget.choose_levels",
        "density_levels": "mlcomp.budget.database",
        "level_losses": "mlcomp.budget.stitch",
        "load_database": "mlcomp.budget.database",
        "stitch": "mlcomp.budget.stitch",
    },
)

shorten(globals())
