"""The small networks of the course, and loaders of real models."""

from mlcomp.models.byte_lm import byte_lm
from mlcomp.models.convnet import convnet
from mlcomp.models.in_context_teacher import in_context_teacher
from mlcomp.models.lenet import lenet_300_100
from mlcomp.models.minilm import embed, minilm
from mlcomp.models.mlp import mlp
from mlcomp.models.mobilenet_v2 import mobilenet_v2, mobilenet_v2_weights
from mlcomp.models.smollm2 import smollm2
from mlcomp.models.token_decoder import token_decoder
from mlcomp.models.vit import vit

__all__ = [
    "byte_lm",
    "convnet",
    "embed",
    "in_context_teacher",
    "lenet_300_100",
    "minilm",
    "mlp",
    "mobilenet_v2",
    "mobilenet_v2_weights",
    "smollm2",
    "token_decoder",
    "vit",
]
