"""Models of transformers, from a folder or from its hub."""

import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from mlcomp.deploy.opened_model import (
    ENCODER,
    IMAGE_CLASSIFIER,
    LANGUAGE_MODEL,
    NETWORK,
    TEXT_CLASSIFIER,
    ImageInput,
    OpenedModel,
)
from mlcomp.extras import need
from mlcomp.models.quiet import quiet_transformers

# The end of an architecture's name → the class of transformers that opens it, and the kind of model.
_ARCHITECTURES = {
    "ForCausalLM": ("AutoModelForCausalLM", LANGUAGE_MODEL),
    "LMHeadModel": ("AutoModelForCausalLM", LANGUAGE_MODEL),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", TEXT_CLASSIFIER),
    "ForImageClassification": ("AutoModelForImageClassification", IMAGE_CLASSIFIER),
    "Model": ("AutoModel", ENCODER),
}


def kind_of(model: nn.Module) -> str:
    """Return the kind of a model that the caller has opened, by the name of its class."""
    kinds = (kind for end, (_, kind) in _ARCHITECTURES.items() if type(model).__name__.endswith(end))
    return next(kinds, NETWORK) if hasattr(model, "config") else NETWORK


def from_transformers(name: str, ways: str, *, pretrained: bool, hub: bool) -> OpenedModel:
    """Return the model of a folder, or of the hub; ``ways`` ends the message where there is none."""
    transformers = need("transformers", "notebooks")
    if (Path(name) / "mlcomp.json").exists():
        raise ValueError(f"{name} holds a compressed model already: open it with mlcomp.layerwise.load({name!r})")
    if not hub and not (Path(name) / "config.json").exists():
        raise ValueError(f"the folder {name} has no config.json, so it holds no model of transformers. {ways}")
    if hub:
        _check_hub(name, ways)
    with quiet_transformers(), _quiet_hub():
        try:
            config = transformers.AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as problem:
            raise ValueError(_not_opened(name, hub, problem, ways)) from problem
        architecture = next(iter(config.architectures or ()), "")
        found = next((v for end, v in _ARCHITECTURES.items() if architecture.endswith(end)), None)
        if found is None:
            raise ValueError(
                f"{name} is a {architecture or config.model_type}, and how to give it inputs is not known here: open "
                "it in Python, and pass the model and its batches to mlcomp.deploy.compress_model"
            )
        opener, kind = getattr(transformers, found[0]), found[1]
        try:
            images = _image_input(transformers, name, config) if kind == IMAGE_CLASSIFIER else None
            tokenizer = None if images else transformers.AutoTokenizer.from_pretrained(name)
            model = opener.from_pretrained(name, dtype="auto") if pretrained else opener.from_config(config)
        except (OSError, ValueError, ImportError, SafetensorError) as problem:
            raise ValueError(_not_opened(name, hub, problem, ways)) from problem
    return OpenedModel(name, model.eval(), tokenizer, kind, images, None if images else longest_text(model))


def _check_hub(name: str, ways: str) -> None:
    """Raise if the hub has no address here and the model is not in its cache: asking it would take half a minute."""
    hub = need("huggingface_hub", "notebooks")
    if hub.constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(hub.constants.ENDPOINT).hostname, 443)
    except OSError as problem:
        if not isinstance(hub.try_to_load_from_cache(name, "config.json"), str):
            raise ValueError(_not_opened(name, True, problem, ways)) from problem


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep what the hub's client tells of each attempt off the terminal."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _not_opened(name: str, hub: bool, problem: Exception, ways: str) -> str:
    said = " ".join(str(problem).split())[:300]
    if not hub:
        return f"transformers cannot open the folder {name}: {said}"
    return (
        f"there is no model {name!r} in the course and no such folder, and the hub of transformers did not give it: "
        f"without a network, only what is in its cache can be had; a private model needs a login. It said: {said} "
        f"{ways}"
    )


def _image_input(transformers: Any, name: str, config: Any) -> ImageInput:
    processor = transformers.AutoImageProcessor.from_pretrained(name, use_fast=True)
    size = getattr(processor, "crop_size", None) or processor.size
    side = int(size.get("height") or size.get("shortest_edge") or config.image_size)
    mean, std = tuple(processor.image_mean or (0.0,) * 3), tuple(processor.image_std or (1.0,) * 3)
    return ImageInput(len(mean), side, int(processor.size.get("shortest_edge") or side), mean, std)


def longest_text(model: nn.Module) -> int | None:
    """Return how many tokens a transformers model reads at the most, if its configuration says so."""
    found = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
