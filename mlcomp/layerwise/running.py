"""Running a model to look at it: eval mode, no gradients, hooks that come off again, batches of any form.

Syllabus: 2.01
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mlcomp.modes import home

LOGITS = "logits_to_keep"  # of how many last tokens: what transformers calls it


class StopForward(BaseException):
    """Raised in a hook to end a forward pass that has shown enough; no ``except Exception`` of a model catches it."""


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take the hooks off again, whatever happens inside."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Within this, models of transformers keep no keys and values of a text unless a batch asks for it.

    Nobody goes on with the text here, and each run of a block would have to begin with a copy of what was kept.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if getattr(config, "use_cache", None) is True}
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


@contextmanager
def without_logits(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Within this, a language model of transformers computes the logits of each text's last token only.

    Nobody looks at them here, and over a large vocabulary they take a good part of a small model's time and memory.
    All logits are made where one of the layers ``names`` lies behind the blocks, and sees them itself, or where a
    batch asks for them or for a loss.
    """
    blocks = getattr(model, "base_model", model)  # of models of transformers
    prefix = next((name for name, module in model.named_modules() if name and module is blocks), None)
    try:
        parameters = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):  # a compiled forward has none
        parameters = []
    if prefix is None or LOGITS not in parameters or not all(name.startswith(f"{prefix}.") for name in names):
        yield
        return

    def shorten(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = {*parameters[: len(args)], *kwargs}
        return args, kwargs if given & {LOGITS, "labels"} else kwargs | {LOGITS: 1}

    with hooked([model.register_forward_pre_hook(shorten, with_kwargs=True)]):
        yield


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call ``model`` on one batch: a tensor, a tuple or list of positional or a mapping of keyword arguments.

    Tensors are moved to the device of the model's first parameter.
    """
    device = home(model)

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    args: tuple = ()
    kwargs: dict[str, Any] = {}
    if isinstance(batch, Tensor):
        args = (move(batch),)
    elif isinstance(batch, Mapping):
        kwargs = {key: move(value) for key, value in batch.items()}
    elif isinstance(batch, tuple | list):
        args = tuple(move(value) for value in batch)
    else:
        raise TypeError(f"a batch is a tensor, a tuple or list, or a mapping, got {type(batch).__name__}")
    check_data(model)
    _check_arguments(model, args, kwargs)
    return model(*args, **kwargs)


def check_data(model: nn.Module) -> None:
    """Raise if a module's own tensors have no data and nothing brings it in when the module is called."""
    for name, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_meta and not hasattr(module, "_hf_hook"):  # accelerate's offloading
                raise ValueError(
                    f"layer {name!r}: its {key} has no data (device meta: offloaded, or not loaded yet): load the "
                    "model's weights first"
                )


def _check_arguments(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Raise if the model does not take the entries of a batch, which usually means labels among them."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # a compiled forward has none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as problem:
        takes = ", ".join(signature.parameters) or "nothing"
        has = f"the entries {sorted(kwargs)}" if kwargs else f"{len(args)} entries"
        raise ValueError(
            f"a batch has {has}, and {type(model).__name__} takes ({takes}): {problem}. Are there labels among them? "
            "Calibration batches hold inputs only, as in [x for x, label in loader]"
        ) from problem


def check_batches(batches: Iterable, *, again: str | None = None) -> None:
    """Raise if ``batches`` is one batch, or can be read only once while ``again`` (what for) needs it twice."""
    if isinstance(batches, Tensor | Mapping | str):
        raise TypeError(
            f"batches must be an iterable of batches, got one {type(batches).__name__}: "
            "wrap it as [batch], or cut it with batch.split(n)"
        )
    if again and isinstance(batches, Iterator):
        raise ValueError(
            f"batches is a one-shot {type(batches).__name__}, but {again} reads it several times: "
            "pass a list or a DataLoader"
        )


def check_called(calls: Mapping[str, int]) -> None:
    """Raise if a layer saw no sample: the batches were empty, or the model never calls the module."""
    silent = [name for name, count in calls.items() if not count]
    if len(silent) == len(calls):
        raise ValueError("no layer was called on any sample: batches is empty, or the model runs without its modules")
    if silent:
        raise ValueError(no_sample(silent))


def no_sample(names: Iterable[str]) -> str:
    """Return the message about layers that no sample reached."""
    return (
        f"layer(s) {list(names)} saw no sample. They are unused on these batches, or the model reads their weight "
        "without calling them: leave them out through layers="
    )
