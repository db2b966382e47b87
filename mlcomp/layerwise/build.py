"""Models built by name, without their weights: what a saved folder may ask for, and nothing else.

Syllabus: 2.01
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlcomp.extras import need

# A name without ":" and "/": timm would take "hf-hub:…" for an address.
_SOURCE = re.compile(r"(torchvision|timm|transformers):([A-Za-z0-9_.-]+)")
_WEIGHTS = ("pretrained", "weights", "checkpoint", "cache", "features_only")


def check_source(source: str, options: Mapping[str, Any]) -> tuple[str, str]:
    """Return library and name of a source; raise unless it is one that :func:`build_model` knows.

    Raises:
        ValueError: another form, options that are no numbers, or that would fetch weights.
    """
    match = _SOURCE.fullmatch(source) if isinstance(source, str) else None
    if match is None:
        raise ValueError(f'source must be "torchvision:NAME" or "timm:NAME", got {source!r}')
    for key, value in options.items():
        values = value if isinstance(value, list | tuple) else [value]
        if not isinstance(key, str) or key.startswith(_WEIGHTS):
            raise ValueError(f"{key!r} is no option here: a saved model brings its own weights")
        if not all(isinstance(v, bool | int | float) or v is None for v in values):
            raise ValueError(f"options must be numbers or lists of numbers, got {key}={value!r}")
    return match[1], match[2]


def build_model(source: str, options: Mapping[str, Any], folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return a model of this source, in eval mode, on the CPU; its parameters have no values (device meta).

    Args:
        source: "torchvision:NAME", "timm:NAME", or "transformers:CLASS" with its config.json in ``folder``.
        options: numbers for the builder.
        folder: of the saved model.
        dtype: the default dtype while the model is built.
    Raises:
        ValueError: another source, a name that the library does not have. ImportError: it is not installed.
    """
    library, name = check_source(source, options)
    with _default_dtype(dtype), _without_values():
        if library == "transformers":
            return _from_transformers(name, folder).eval()
        try:
            if library == "torchvision":
                return _library("torchvision").models.get_model(name, weights=None, **options).eval()
            return _library("timm").create_model(name, pretrained=False, **options).eval()
        except (RuntimeError, ValueError, TypeError) as problem:
            raise ValueError(f"{library} cannot build {name!r} with {dict(options)}: {problem}") from problem


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as problem:
        raise ImportError(f"this model is built by {name}, which is not installed: pip install {name}") from problem


def _from_transformers(name: str, folder: Path) -> nn.Module:
    transformers = need("transformers", "notebooks")
    kind: Any = getattr(transformers, name, None)
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not known:
        raise ValueError(f"transformers {transformers.__version__} has no model {name!r}")
    model = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    if (folder / "generation_config.json").exists():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _without_values() -> Iterator[None]:
    """Let new parameters take no memory: they will be replaced. Buffers, which may not be in a file, are computed."""
    before = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if type(param) is nn.Parameter and not param.is_meta:  # one that is tied to another stays the same
            param = nn.Parameter(param.detach().to("meta"), param.requires_grad)
        before(module, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = before  # type: ignore[method-assign]
