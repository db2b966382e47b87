"""Classifiers of images from torchvision and timm."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mlcomp.deploy.opened_model import IMAGE_CLASSIFIER, ImageInput, OpenedModel
from mlcomp.extras import need


def from_torchvision(name: str, *, pretrained: bool) -> OpenedModel:
    """Return a model of torchvision with its default weights, or random ones."""
    models = _library("torchvision").models
    known = models.list_models()
    if name not in known:
        raise ValueError(_unknown("torchvision", name, known))
    weights = models.get_model_weights(name).DEFAULT
    shown = weights.transforms()
    if not hasattr(shown, "crop_size"):
        raise ValueError(
            f"torchvision:{name} is no classifier of images, and how to give it inputs is not known here"
        )
    model = _download(lambda: models.get_model(name, weights=weights if pretrained else None), f"torchvision:{name}")
    images = ImageInput(3, shown.crop_size[0], shown.resize_size[0], tuple(shown.mean), tuple(shown.std))
    return OpenedModel(f"torchvision:{name}", model.eval(), None, IMAGE_CLASSIFIER, images)


def from_timm(name: str, *, pretrained: bool) -> OpenedModel:
    """Return a model of timm with its pretrained weights, or random ones."""
    timm = _library("timm")
    if not timm.is_model(name):
        raise ValueError(_unknown("timm", name, timm.list_models()))
    model = _download(lambda: timm.create_model(name, pretrained=pretrained), f"timm:{name}")
    facts = timm.data.resolve_model_data_config(model)
    channels, side, _ = facts["input_size"]
    resize = round(side / facts["crop_pct"])
    images = ImageInput(channels, side, resize, tuple(facts["mean"]), tuple(facts["std"]))
    return OpenedModel(f"timm:{name}", model.eval(), None, IMAGE_CLASSIFIER, images)


def _library(name: str) -> Any:
    """Return torchvision or timm; one that does not load beside this torch is as good as missing."""
    try:
        return need(name, None)
    except RuntimeError as problem:
        raise ImportError(
            f"{name} does not load ({problem}): it has to be the release that goes with torch {torch.__version__}"
        ) from problem


def _unknown(library: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"{library} has no model {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _download(make: Callable[[], nn.Module], name: str) -> nn.Module:
    try:
        return make()
    except (OSError, RuntimeError) as problem:  # the network's errors, a file whose hash is wrong, torch's download
        raise ValueError(
            f"the weights of {name} could not be had: {problem}. Is there a network? Without one, --random-weights "
            "(pretrained=False) tries the method on the network's shape"
        ) from problem
