"""The one training loop of the course, what is trained beside a frozen model, and labels that a model makes."""

from mlcomp.train.co_training import CoTrained, co_training
from mlcomp.train.loop import History, batch_starts, random_batches, train
from mlcomp.train.lora import LoRALinear, add_lora, lora_layers, lora_parameters, merge_lora
from mlcomp.train.meta_pseudo_labels import MetaHistory, meta_pseudo_labels
from mlcomp.train.net_aug import Augmented, net_aug
from mlcomp.train.pseudo_labels import confident_labels, network_fit
from mlcomp.train.self_training import SelfTrained, self_training

__all__ = [
    "Augmented",
    "CoTrained",
    "History",
    "LoRALinear",
    "MetaHistory",
    "SelfTrained",
    "add_lora",
    "batch_starts",
    "co_training",
    "confident_labels",
    "lora_layers",
    "lora_parameters",
    "merge_lora",
    "meta_pseudo_labels",
    "net_aug",
    "network_fit",
    "random_batches",
    "self_training",
    "train",
]
